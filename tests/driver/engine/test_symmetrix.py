"""The fast evaluator against the reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from model_zoo import FEW_ELEMENTS

from driver.archive.records import Structure
from driver.engine.batch import StructureBatch
from driver.engine.choice import compare_stiffness
from driver.engine.engine import Engine
from driver.engine.interface import Evaluation, Evaluator
from driver.engine.neighbors import NeighborList
from driver.engine.preparation import UnfitError, prepare
from driver.models import ModelFile

Zoo = Callable[..., ModelFile]
CASES = [
    *((name, "float64") for name in ("mp-0", "mp-0-residual-first", "mp-0b", "density", "mpa-0")),
    ("mp-0", "float32"),
    ("mpa-0", "float32"),
]

# Radial functions are splines there: the forces of these random models, up to 10 eV/A, differ by ~1e-5 eV/A.
ENERGY_EV_ATOM = {"float64": 1e-6, "float32": 1e-4}
FORCE_EV_A = {"float64": 1e-4, "float32": 2e-3}


def evaluate(evaluator: Evaluator, structures: Sequence[Structure], *, stress: bool = False) -> Evaluation:
    batch = StructureBatch.from_structures(structures, dtype=evaluator.dtype, device=evaluator.device)
    return evaluator.evaluate(batch, NeighborList(evaluator.cutoff_A), stress=stress)


@pytest.fixture(scope="module")
def fast(zoo: Zoo, prepared_cache: Path) -> Callable[[str, str], Evaluator]:
    """Return `fast(architecture, dtype)`."""

    def make(architecture: str, dtype: str) -> Evaluator:
        model = zoo(architecture)
        return prepare(Engine()._model(model), model, dtype, prepared_cache, threads=1)

    return make


@pytest.mark.parametrize(("architecture", "dtype"), CASES)
def test_agrees_with_the_reference(
    zoo: Zoo, fast: Callable[[str, str], Evaluator], structures: list[Structure], architecture: str, dtype: str
) -> None:
    reference = evaluate(Engine().evaluator(zoo(architecture), FEW_ELEMENTS, "float64"), structures, stress=True)
    evaluator = fast(architecture, dtype)
    assert evaluator.name == "symmetrix"
    assert evaluator.atomic_numbers == FEW_ELEMENTS
    ours = evaluate(evaluator, structures, stress=True)  # four structures of different elements in one batch
    atoms = np.array([len(s) for s in structures])
    assert ours.stress is not None and reference.stress is not None
    assert ours.energy.dtype == torch.float64
    assert ours.forces.dtype == evaluator.dtype
    np.testing.assert_allclose(ours.energy / atoms, reference.energy / atoms, rtol=0, atol=ENERGY_EV_ATOM[dtype])
    np.testing.assert_allclose(ours.forces, reference.forces, rtol=0, atol=FORCE_EV_A[dtype])
    np.testing.assert_allclose(ours.stress, reference.stress, rtol=0, atol=FORCE_EV_A[dtype])
    assert reference.forces.abs().max() > 0.01  # there was something to compare


@pytest.mark.parametrize("architecture", ["mp-0", "mp-0b", "mpa-0"])
def test_force_constants_agree_with_the_reference(
    zoo: Zoo, fast: Callable[[str, str], Evaluator], structures: list[Structure], architecture: str
) -> None:
    """With the library's own 256 spline points they differ by 2e-4."""
    reference = Engine().evaluator(zoo(architecture), FEW_ELEMENTS, "float64")
    for structure in structures:
        agreement = compare_stiffness(fast(architecture, "float64"), reference, structure)
        assert 0 < agreement.difference_eV_A2 < 2e-5 * agreement.scale_eV_A2


def test_a_structure_does_not_depend_on_its_batch_mates(
    fast: Callable[[str, str], Evaluator], structures: list[Structure]
) -> None:
    evaluator = fast("mp-0", "float64")
    together = evaluate(evaluator, structures)
    begin = 0
    for index, structure in enumerate(structures):
        alone = evaluate(evaluator, [structure])
        np.testing.assert_allclose(together.energy[index], alone.energy[0], rtol=0, atol=1e-10)
        forces = together.forces[begin : begin + len(structure)]
        np.testing.assert_allclose(forces, alone.forces, rtol=0, atol=1e-10)
        begin += len(structure)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("fault", ["nan", "infinite", "coincident", "collapsed", "flung out"])
def test_a_structure_that_cannot_be_evaluated_harms_no_other(
    fast: Callable[[str, str], Evaluator], structures: list[Structure], fault: str, dtype: str
) -> None:
    positions, cell = structures[1].positions.copy(), structures[1].cell.copy()
    if fault == "coincident":
        positions[1] = positions[0]
    elif fault == "collapsed":
        cell *= 1e-3
    else:
        positions[2, 1] = {"nan": np.nan, "infinite": np.inf, "flung out": 1e12}[fault]
    bad = Structure(structures[1].numbers, positions, cell)
    evaluator = fast("mp-0", dtype)
    good = evaluate(evaluator, [structures[0], structures[3]], stress=True)
    mixed = evaluate(evaluator, [structures[0], bad, structures[3]], stress=True)
    n = len(structures[0])
    assert mixed.energy[1].isnan()
    assert mixed.forces[n : n + len(bad)].isnan().all()
    assert good.stress is not None and mixed.stress is not None
    assert mixed.stress[1].isnan().all()
    atol = 1e-10 if dtype == "float64" else 1e-5
    np.testing.assert_allclose(mixed.energy[[0, 2]], good.energy, rtol=0, atol=atol * 10)
    np.testing.assert_allclose(
        torch.cat((mixed.forces[:n], mixed.forces[n + len(bad) :])), good.forces, rtol=0, atol=atol
    )


def test_evaluates_nothing_but_lone_atoms(fast: Callable[[str, str], Evaluator]) -> None:
    """An atom further from its images than the cutoff has no edges, and no forces."""
    lone = Structure(np.array([9]), np.zeros((1, 3)), 30.0 * np.eye(3))
    evaluation = evaluate(fast("mp-0", "float64"), [lone, lone])
    assert evaluation.energy[0] == evaluation.energy[1]
    assert torch.isfinite(evaluation.energy).all()
    assert (evaluation.forces == 0).all()


def test_refuses_what_does_not_fit(fast: Callable[[str, str], Evaluator], structures: list[Structure]) -> None:
    evaluator = fast("mp-0", "float64")
    single = StructureBatch.from_structures(structures, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"the batch is torch\.float32"):
        evaluator.evaluate(single, NeighborList(evaluator.cutoff_A))
    double = StructureBatch.from_structures(structures, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"the neighbour list ends at 3\.0 A"):
        evaluator.evaluate(double, NeighborList(3.0))
    xenon = Structure(np.array([54]), np.zeros((1, 3)), 9.0 * np.eye(3))
    with pytest.raises(ValueError, match=r"no elements \[54\]"):
        evaluate(evaluator, [xenon])


def test_says_why_a_model_cannot_be_taken(zoo: Zoo, prepared_cache: Path) -> None:
    model = zoo("mh-1")
    with pytest.raises(UnfitError, match=r"symmetrix-xl [0-9.]+: .*use_last_readout_only"):
        prepare(Engine()._model(model), model, "float32", prepared_cache, threads=1)
    assert not list(prepared_cache.glob("extracted/*.part"))
