"""Speed of the archive: committing results against plain h5py without any safety, and opening a large archive.

python -m benchmarks.archive [--tasks 200] [--materials 2000] [--models 4] [--segments 20]
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np

from driver.archive.datasets import append_rows
from driver.archive.h5md import State, Trajectory, trajectory_arrays
from driver.archive.reader import open_archive
from driver.archive.records import Attempt, Header, MaterialRecord, ModelRecord, Structure, TaskKey, TaskResult
from driver.archive.rows import to_rows
from driver.archive.schema import STATUS
from driver.archive.verify import verify
from driver.archive.writer import ArchiveWriter

ATOMS, FRAMES = 80, 100
HEADER = Header("benchmark", 0, "", {}, {})


def material(number: int) -> MaterialRecord:
    """Return a made-up crystal of ten atoms."""
    rng = np.random.default_rng(number)
    structure = Structure(rng.integers(1, 90, 10), rng.random((10, 3)) * 8, np.eye(3) * 8)
    return MaterialRecord(f"M{number:04d}", "A2BCX6", structure, "benchmark", descriptors={"tolerance_factor": 0.9})


def model(number: int) -> ModelRecord:
    """Return a made-up model."""
    return ModelRecord(f"model-{number}", "file", f"{number:064d}")


def segment_result(key: TaskKey) -> TaskResult:
    """Return one segment of dynamics: 100 frames of 80 atoms, 288 kB."""
    rng = np.random.default_rng(key.segment)
    step = np.arange(1, FRAMES + 1) + key.segment * FRAMES
    vectors = [rng.random((FRAMES, ATOMS, 3)) for _ in range(3)]
    energies = [rng.random(FRAMES) for _ in range(2)]
    frames = Trajectory(np.ones(ATOMS, int), np.ones(ATOMS), np.eye(3), *vectors, step, step * 2.0, *energies)
    arrays, attributes, links = trajectory_arrays(0, frames, State(vectors[0][-1], vectors[1][-1], int(step[-1])))
    integers = {"replicas": 1, "frames": FRAMES, "first_step": 1, "last_step": 2}
    names = ("temperature_K", "temperature_std_K", "potential_energy_eV", "energy_drift_meV_atom_ps")
    scalars = {**integers, **dict.fromkeys(names, 1.0)}
    return TaskResult(key, scalars, arrays, attributes, links, "torch", "float32")


def results(tasks: int) -> Iterator[TaskResult]:
    """Yield segments of many trajectories, five segments each, as a campaign produces them."""
    trajectories = max(1, tasks // 5)
    for number in range(tasks):
        yield segment_result(TaskKey(f"M{number % trajectories:04d}", "model-0", "dynamics", number // trajectories))


def plain(h5: h5py.File, result: TaskResult) -> None:
    """Store a result with h5py as one would without a journal: datasets, rows, units."""
    group = h5.require_group(f"materials/{result.key.material}/model-0/dynamics")
    for path, array in result.arrays.items():
        value = np.asarray(array.value)
        if path not in group:
            shape = (None, *value.shape[1:]) if array.append else None
            group.create_dataset(path, data=value, maxshape=shape, chunks=value.shape if array.append else None)
            group[path].attrs["units"] = array.units
        elif array.append:
            group[path].resize(len(group[path]) + len(value), axis=0)
            group[path][-len(value) :] = value
    table = h5["tasks"]
    table.resize(len(table) + 1, axis=0)
    table[-1] = 1


def time_plain(folder: Path, made: Sequence[TaskResult], sync: bool) -> float:
    """Seconds to store results with plain h5py, flushed (and synced) after each."""
    with h5py.File(folder / f"plain-{sync}.h5", "w", libver="latest") as h5:
        h5.create_dataset("tasks", shape=(0,), maxshape=(None,), chunks=(1000,), dtype="f8")
        start = time.perf_counter()
        for result in made:
            plain(h5, result)
            h5.flush()
            if sync:
                os.fsync(h5.id.get_vfd_handle())
        return time.perf_counter() - start


def time_latdyn(folder: Path, made: Sequence[TaskResult], per_commit: int) -> float:
    """Seconds to commit results, so many at a time."""
    with ArchiveWriter.create(folder / f"latdyn-{per_commit}.h5", HEADER) as writer:
        writer.add_materials([material(number) for number in range(max(1, len(made) // 5))])
        writer.add_models([model(0)])
        attempts = [Attempt(result, 1, 1.0, 1, "host", "cuda:0") for result in made]
        start = time.perf_counter()
        for first in range(0, len(attempts), per_commit):
            writer.commit(attempts[first : first + per_commit])
        return time.perf_counter() - start


def report_commits(folder: Path, tasks: int) -> None:
    """Print the speed of storing results."""
    made = list(results(tasks))
    megabytes = sum(np.asarray(array.value).nbytes for result in made for array in result.arrays.values()) / 1e6
    print(f"storing {tasks} segments of {FRAMES} frames, {ATOMS} atoms ({megabytes / tasks * 1e3:.0f} kB each)")
    ways: dict[str, Callable[[], float]] = {
        "plain h5py, flush each": lambda: time_plain(folder, made, False),
        "plain h5py, flush and fsync each": lambda: time_plain(folder, made, True),
        "Latdyn, a commit each": lambda: time_latdyn(folder, made, 1),
        "Latdyn, 8 tasks per commit": lambda: time_latdyn(folder, made, 8),
    }
    for name, measure in ways.items():
        seconds = measure()
        print(f"  {name:34s} {tasks / seconds:7.0f} tasks/s {megabytes / seconds:7.0f} MB/s")
    start = time.perf_counter()
    assert verify(folder / "latdyn-1.h5") == []
    print(f"  {'verify':34s} {tasks / (time.perf_counter() - start):7.0f} tasks/s")


def build_large(path: Path, materials: int, models: int, segments: int) -> int:
    """Make an archive whose tables are those of a finished campaign; return the number of tasks."""
    rows = [
        (m, k, stage, segment, STATUS["done"], 1, 1.0, 0.0, 1, b"host", b"cuda:0", b"torch", b"float32", b"0" * 32)
        for m in range(materials)
        for k in range(models)
        for stage, count in ((0, 1), (1, 1), (2, segments))
        for segment in range(count)
    ]
    with ArchiveWriter.create(path, HEADER) as writer:
        start = time.perf_counter()
        writer.add_materials([material(number) for number in range(materials)])
        print(f"  {'add_materials':34s} {time.perf_counter() - start:7.2f} s")
        writer.add_models([model(number) for number in range(models)])
        with writer.transaction():
            append_rows(writer.h5, "tasks", to_rows("tasks", rows))
    return len(rows)


def report_opening(folder: Path, materials: int, models: int, segments: int) -> None:
    """Print how long a large archive takes to open."""
    path = folder / "large.h5"
    print(f"an archive of {materials} materials x {models} models x {segments + 2} tasks")
    tasks = build_large(path, materials, models, segments)
    with open_archive(path) as view:
        for name in ("task_states", "materials"):
            start = time.perf_counter()
            count = len(getattr(view, name)())
            print(f"  {name:34s} {time.perf_counter() - start:7.2f} s ({count})")
            assert count == {"task_states": tasks, "materials": materials}[name]
    start = time.perf_counter()
    with ArchiveWriter.open(path):
        print(f"  {'open for writing':34s} {time.perf_counter() - start:7.2f} s")


def main() -> None:
    """Run the benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("tasks", 200), ("materials", 2000), ("models", 4), ("segments", 20)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--folder", type=Path, help="on the file system to measure (default: the temporary one)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        report_commits(Path(folder), options.tasks)
        report_opening(Path(folder), options.materials, options.models, options.segments)


if __name__ == "__main__":
    main()
