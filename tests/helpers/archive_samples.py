"""Small materials, models and results for the tests of the archive."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from driver.archive.h5md import State, Trajectory, trajectory_arrays
from driver.archive.reader import ArchiveView
from driver.archive.records import (
    Array,
    Attempt,
    Header,
    MaterialRecord,
    ModelRecord,
    Structure,
    TaskFailure,
    TaskKey,
    TaskResult,
    TaskState,
)
from driver.archive.schema import scalar_columns
from driver.archive.storage import Storage
from driver.archive.writer import ArchiveWriter

FRAMES = 5
HEADER = Header("test", 7, "name: test\n", {"dynamics.temperature_K": "300.0"}, {"numpy": "2"})


def generator(*identity: object) -> np.random.Generator:
    """A stream of random numbers that depends on the arguments only."""
    return np.random.default_rng(list(repr(identity).encode()))


def material(key: str, atoms: int = 4) -> MaterialRecord:
    """A material with random atoms."""
    rng = generator("material", key, atoms)
    numbers = rng.integers(1, 90, atoms)
    structure = Structure(numbers, rng.random((atoms, 3)) * 5, np.diag([5.0, 6.0, 7.0]))
    return MaterialRecord(key, "A2BX6", structure, "file α.cif", "elpasolite", {"tolerance_factor": 0.1 + 0.2})


def model(key: str) -> ModelRecord:
    """A model."""
    return ModelRecord(key, f"{key}.model", f"{key}-sha256", "", "MPtrj", "MIT", "A. Author (2026)")


def relax_result(key: str, model_key: str, attempt: int = 0) -> TaskResult:
    """A relaxation."""
    rng = generator("relax", key, model_key, attempt)
    record = material(key).structure
    arrays = {
        "numbers": Array(record.numbers),
        "positions": Array(rng.random((4, 3)), "angstrom"),
        "cell": Array(rng.random((3, 3)), "angstrom"),
        "initial/positions": Array(record.positions, "angstrom"),
        "initial/cell": Array(record.cell, "angstrom"),
        "forces": Array(rng.random((4, 3)), "eV angstrom-1"),
        "stress": Array(rng.random((3, 3)), "eV angstrom-3"),
    }
    scalars: dict[str, Any] = {name: float(rng.random()) for name in scalar_columns("relax")}
    scalars |= {"steps": 3, "converged": True, "space_group_initial": 225, "space_group_final": 225}
    return TaskResult(TaskKey(key, model_key, "relax"), scalars, arrays, evaluator="torch", dtype="float64")


def displace_result(key: str, model_key: str) -> TaskResult:
    """Displacement forces with a text and an attribute."""
    rng = generator("displace", key, model_key)
    arrays = {
        "d0.0100/forces": Array(rng.random((2, 8, 3)), "eV angstrom-1"),
        "d0.0100/force_constants": Array(rng.random((4, 8, 3, 3)), "eV angstrom-2"),
        "d0.0100/phonopy_yaml": Array("phonopy: {units: Å}\n" * 200),
        "supercell_matrix": Array(np.diag([2, 1, 1])),
        "empty": Array(""),
    }
    scalars = {
        "atoms": 8,
        "displacements": 2,
        "max_residual_force_eV_A": 1e-6,
        "max_drift_force_eV_A": 1e-7,
        "fc_asymmetry_eV_A2": np.float64(1e-3),
    }
    key_ = TaskKey(key, model_key, "displace")
    return TaskResult(key_, scalars, arrays, {"d0.0100": {"distance_A": 0.01}}, evaluator="torch", dtype="float64")


def frames(key: str, segment: int, replica: int = 0, atoms: int = 4) -> tuple[Trajectory, State]:
    """A segment of a made-up trajectory."""
    rng = generator("frames", key, segment, replica)
    step = np.arange(1, FRAMES + 1) * 10 + segment * FRAMES * 10
    trajectory = Trajectory(
        numbers=np.arange(1, atoms + 1),
        masses_u=np.arange(1.0, atoms + 1),
        cell_A=np.diag([5.0, 6.0, 7.0]),
        positions_A=rng.random((FRAMES, atoms, 3)),
        velocities_A_fs=rng.random((FRAMES, atoms, 3)),
        forces_eV_A=rng.random((FRAMES, atoms, 3)),
        step=step,
        time_fs=step * 2.0,
        potential_energy_eV=rng.random(FRAMES),
        kinetic_energy_eV=rng.random(FRAMES),
    )
    return trajectory, State(rng.random((atoms, 3)), rng.random((atoms, 3)), int(step[-1]))


def dynamics_result(key: str, model_key: str, segment: int, replicas: int = 1) -> TaskResult:
    """A segment of dynamics."""
    arrays: dict[str, Array] = {}
    attributes: dict[str, dict[str, Any]] = {}
    links: dict[str, str] = {}
    for replica in range(replicas):
        for into, more in zip(
            (arrays, attributes, links), trajectory_arrays(replica, *frames(key, segment, replica)), strict=True
        ):
            into.update(more)
    scalars = {
        "replicas": replicas,
        "frames": FRAMES,
        "temperature_K": 301.5,
        "temperature_std_K": 12.0,
        "potential_energy_eV": -3.0,
        "energy_drift_meV_atom_ps": 0.1,
        "first_step": segment * FRAMES * 10 + 1,
        "last_step": (segment + 1) * FRAMES * 10,
    }
    key_ = TaskKey(key, model_key, "dynamics", segment)
    return TaskResult(key_, scalars, arrays, attributes, links, "torch", "float32")


def failure(key: TaskKey, permanent: bool = False) -> TaskFailure:
    """A failed task."""
    return TaskFailure(key, "RuntimeError", "exploded: 2e5 K", "Traceback ...\n  naïve\0\n", permanent)


def attempt(outcome: TaskResult | TaskFailure, number: int = 1, quarantined: bool = False) -> Attempt:
    """A finished attempt."""
    return Attempt(outcome, number, 1.5, 3, "node-Ü", "cuda:0", quarantined)


def campaign(materials: Sequence[str] = ("A", "B"), segments: int = 2) -> list[list[Attempt]]:
    """Commits of a small campaign: every stage, a failure, several attempts per commit."""
    commits = []
    for key in materials:
        first = TaskKey(key, "m", "relax")
        commits.append([attempt(failure(first))])
        commits.append([attempt(relax_result(key, "m"), 2), attempt(displace_result(key, "m"))])
    for segment in range(segments):
        for key in materials:
            commits.append([attempt(dynamics_result(key, "m", segment))])
    commits.append([attempt(failure(TaskKey(materials[0], "n", "relax")), 3, True)])
    return commits


def new_archive(path: Path, materials: Sequence[str] = ("A", "B"), storage: Storage | None = None) -> ArchiveWriter:
    """An archive with materials and two models."""
    writer = ArchiveWriter.create(path, HEADER, storage=storage)
    writer.add_materials([material(key) for key in materials])
    writer.add_models([model("m"), model("n")])
    return writer


def states_after(commits: Sequence[Sequence[Attempt]]) -> dict[TaskKey, TaskState]:
    """States that an archive should report."""
    states = {}
    for commit in commits:
        for item in commit:
            good = isinstance(item.outcome, TaskResult)
            status = "done" if good else ("quarantined" if item.quarantined else "failed")
            states[item.key] = TaskState(status, item.number)
    return states


def assert_stored(view: ArchiveView, commits: Sequence[Sequence[Attempt]]) -> None:
    """Compare everything in an archive with what was committed, bit for bit."""
    assert view.task_states() == states_after(commits)
    failures = [item for commit in commits for item in commit if isinstance(item.outcome, TaskFailure)]
    assert [row.key for row in view.failures()] == [item.key for item in failures]
    tables = {stage: view.table(stage) for stage in ("relax", "displace", "dynamics")}
    for item in (item for commit in commits for item in commit):
        if isinstance(item.outcome, TaskResult):
            assert_result_stored(view, item.outcome, tables[item.key.stage])


def assert_result_stored(view: ArchiveView, result: TaskResult, columns: dict[str, np.ndarray]) -> None:
    """Compare one result with what an archive has of it."""
    key = result.key
    task = (columns["material"] == key.material) & (columns["model"] == key.model) & (columns["segment"] == key.segment)
    (row,) = np.flatnonzero(task)
    for name, value in result.scalars.items():
        assert columns[name][row] == value
    for path, array in result.arrays.items():
        stored = view.read(key.material, key.model, key.stage, path)
        if isinstance(array.value, str) or isinstance(stored, str):
            assert stored == array.value
            continue
        if array.append:
            stored = stored[key.segment * len(array.value) : (key.segment + 1) * len(array.value)]
        assert stored.dtype == array.value.dtype
        assert np.array_equal(stored, array.value)


def kill(writer: ArchiveWriter) -> None:
    """Leave an archive as a killed writer does, lock file apart."""
    writer._file.drop_writes(True)
    writer._file._close_descriptors()
    writer._lock.release()
