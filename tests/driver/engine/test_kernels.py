"""cuEquivariance: the same numbers, on a CPU, as the reference; its kernels themselves need a GPU."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest
import torch
from model_zoo import FEW_ELEMENTS, build_model, save_model
from random_structures import random_structure

from driver.engine.batch import StructureBatch
from driver.engine.engine import Engine
from driver.engine.neighbors import NeighborList
from driver.errors import UsageError
from driver.settings import EngineSettings


def evaluate(engine, model, structures):
    evaluator = engine.evaluator(model, FEW_ELEMENTS[:3], "float64")
    batch = StructureBatch.from_structures(structures, dtype=torch.float64)
    return evaluator, evaluator.evaluate(batch, NeighborList(evaluator.cutoff_A), stress=True)


@pytest.mark.parametrize("architecture", ["mp-0", "mpa-0"])
def test_gives_the_numbers_of_the_reference(tmp_path, architecture):
    model = save_model(build_model(architecture, hidden_irreps="4x0e+4x1o", max_ell=2), tmp_path / "a.model")
    structures = [random_structure(FEW_ELEMENTS[:3], atoms, seed=atoms) for atoms in (7, 12)]
    _, expected = evaluate(Engine(), model, structures)
    engine = Engine(settings=EngineSettings(cuequivariance=True))
    evaluator, found = evaluate(engine, model, structures)
    assert evaluator.name == "torch+cuequivariance"
    assert engine.evaluator(model, FEW_ELEMENTS[4:5], "float64") is evaluator  # converted once, for all elements
    for name in ("energy", "forces", "stress"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=0, atol=1e-9)
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_computes_in_the_precision_that_was_asked_for(tmp_path, dtype):
    """The kernels keep the one that they were made for; in double precision they would be right, and slow."""
    model = save_model(build_model("mpa-0", hidden_irreps="4x0e+4x1o", max_ell=2), tmp_path / "a.model")
    evaluator = Engine(settings=EngineSettings(cuequivariance=True)).evaluator(model, FEW_ELEMENTS[:3], dtype)
    kernels = {m.math_dtype for m in evaluator._model.modules() if getattr(m, "math_dtype", None) is not None}
    assert kernels == {getattr(torch, dtype)}
    structure = random_structure(FEW_ELEMENTS[:3], 12, seed=3)
    forces = []
    for judged in (evaluator, Engine().evaluator(model, FEW_ELEMENTS[:3], "float64")):
        batch = StructureBatch.from_structures([structure], dtype=judged.dtype)
        forces.append(judged.evaluate(batch, NeighborList(judged.cutoff_A)).forces.double())
    tolerance = {"float32": 1e-5, "float64": 1e-11}[dtype] * float(forces[1].abs().max())
    np.testing.assert_allclose(*forces, rtol=0, atol=tolerance)


def test_a_conversion_that_changes_forces_is_refused(tmp_path, monkeypatch):
    """As happens when a file holds another basis of the symmetric contraction than its settings say."""
    model = save_model(build_model("mp-0", hidden_irreps="4x0e", max_ell=2), tmp_path / "a.model")
    other = build_model("mp-0", hidden_irreps="4x0e", max_ell=2, seed=2)
    monkeypatch.setattr("driver.engine.engine.with_cuequivariance", lambda whole, device, dtype: other)
    with pytest.raises(UsageError, match=r"model zoo: with cuEquivariance it gives energy"):
        Engine(settings=EngineSettings(cuequivariance=True)).evaluator(model, FEW_ELEMENTS[:3], "float32")


def test_says_what_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    model = save_model(build_model("mp-0"), tmp_path / "a.model")
    with pytest.raises(UsageError, match=r"engine\.cuequivariance=true needs cuequivariance, .*: pip install"):
        Engine(settings=EngineSettings(cuequivariance=True)).evaluator(model, FEW_ELEMENTS[:1], "float32")
