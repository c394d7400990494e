"""The stages on a device of its own: nothing is mixed with tensors of the CPU, and a step seldom waits."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from model_zoo import FEW_ELEMENTS, build_model, save_model
from pretend_device import PretendDevice
from random_structures import random_structure

from driver.archive.records import TaskKey, TaskResult
from driver.engine.engine import Engine
from driver.models import ModelFile
from driver.settings import DisplaceSettings, DynamicsSettings, RelaxSettings, SupercellSettings
from driver.stages.displace import displace
from driver.stages.dynamics import STOP_POLL_STEPS, dynamics
from driver.stages.relax import relax
from driver.tasks import TaskInput

CELL = SupercellSettings((1, 1, 1))
ENSEMBLES = ("langevin", "andersen", "nve")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelFile:
    built = build_model("mpa-0", hidden_irreps="4x0e+4x1o", max_ell=2, elements=FEW_ELEMENTS[:4], r_max_A=3.5)
    built.scale_shift.scale *= 1e-2
    return save_model(built, tmp_path_factory.mktemp("model") / "a.model")


def inputs(stage: str) -> list[TaskInput]:
    structures = [random_structure(FEW_ELEMENTS[i : i + 3], 6 + i, seed=i, volume_per_atom_A3=30.0) for i in range(2)]
    return [TaskInput(TaskKey(f"m{i}", "zoo", stage), structure) for i, structure in enumerate(structures)]


def both(run: Callable[[Engine], list[object]]) -> tuple[list[TaskResult], list[TaskResult]]:
    """Results on the CPU, and on the device."""
    on_cpu = run(Engine())
    with PretendDevice():
        on_device = run(Engine("meta"))
    assert all(isinstance(result, TaskResult) for result in (*on_cpu, *on_device)), (on_cpu, on_device)
    return on_cpu, on_device


def assert_same(results: tuple[list[TaskResult], list[TaskResult]]) -> None:
    for ours, theirs in zip(*results, strict=True):
        for path, array in ours.arrays.items():
            if not isinstance(array.value, str):
                np.testing.assert_allclose(theirs.arrays[path].value, array.value, rtol=1e-4, atol=1e-8)


def short(ensemble: str, steps: int, frame_interval_fs: float = 10.0) -> DynamicsSettings:
    length = steps * 2e-3
    return DynamicsSettings(
        ensemble=ensemble,
        dtype="float64",
        equilibration_ps=0.0,
        production_ps=length,
        segment_ps=length,
        frame_interval_fs=frame_interval_fs,
    )


@pytest.mark.parametrize("ensemble", ENSEMBLES)
def test_dynamics(model: ModelFile, ensemble: str) -> None:
    settings = short(ensemble, steps=5)
    assert_same(both(lambda engine: list(dynamics(inputs("dynamics"), model, engine, CELL, settings, seed=3))))


def test_displacements(model: ModelFile) -> None:
    assert_same(both(lambda engine: list(displace(inputs("displace"), model, engine, CELL, DisplaceSettings()))))


def test_relaxation(model: ModelFile) -> None:
    settings = RelaxSettings(mode="none")
    assert_same(both(lambda engine: list(relax(inputs("relax"), model, engine, settings))))


def test_a_step_waits_for_the_device_twice_besides_its_frames(model: ModelFile) -> None:
    """For whether to search neighbours again, and for how many there are."""
    seen: list[Counter[str]] = []
    with PretendDevice() as device:

        def stop() -> bool:
            seen.append(Counter(device.waits))
            return False

        settings = short("langevin", steps=30, frame_interval_fs=60.0)
        engine = Engine("meta")
        list(dynamics(inputs("dynamics"), model, engine, CELL, settings, seed=3, stop=stop))
    waits = [(after - before).total() for before, after in itertools.pairwise(seen)]
    assert min(waits) == 2 * STOP_POLL_STEPS, waits  # where there is neither a frame nor a search in between


def test_the_device_of_these_tests_refuses_a_mixture_and_counts() -> None:
    with PretendDevice() as device:
        there, here = torch.arange(4.0, device="meta"), torch.zeros(4)
        for mixture in (lambda: there + here, lambda: here.index_add_(0, torch.tensor([1]), there[:1])):
            with pytest.raises(RuntimeError, match="two devices"):
                mixture()
        assert (there + torch.tensor(1.0)).tolist() == [1.0, 2.0, 3.0, 4.0]
        assert there[there > 1.5].tolist() == [2.0, 3.0]
        assert device.waits == {"_to_copy": 2, "index": 1}
