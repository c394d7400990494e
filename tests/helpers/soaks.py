"""Soaks: kill, cut the power, flip bytes, again and again, and count what was lost.

They serve tests/faults and benchmarks/faults.py.

Each function returns counts by name; `lost` counts committed results that are missing or changed, and is never anything
but 0 unless the archive breaks its promise.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
from archive_samples import campaign, new_archive
from crash_disk import killed_after, power_lost_after
from crash_replay import check, record
from damage import everything, flip

from driver.archive.reader import ArchiveView, open_archive
from driver.archive.records import STAGES, ArchiveError, TaskKey
from driver.archive.verify import check_tasks, stored_tasks, verify

ROOT = Path(__file__).resolve().parents[2]
HELPERS = ROOT / "tests" / "helpers"

Counts = Counter[str]
Say = Callable[[str], None]


def replay_prefixes(folder: Path, segments: int, every: int = 1) -> Counts:
    """Kill a recorded writer after every so many operations, and in the middle of each write."""
    recording, counts = record(folder, segments), Counts()
    for count in range(0, len(recording.operations) + 1, every):
        for fraction in (0.0, 0.5):
            if fraction and (count == len(recording.operations) or recording.operations[count].kind != "write"):
                continue
            disk = killed_after(recording.operations, count, fraction)
            thoroughly = counts["prefixes"] % 10 == 0
            counts["lost"] += not _holds(check, disk, folder / "image", recording, count, thoroughly=thoroughly)
            counts["prefixes"] += 1
    return counts


def lose_power(folder: Path, segments: int, images: int, seed: int = 0) -> Counts:
    """Cut the power at random moments of a recorded writer's run; any part of what was not synced is on the disk."""
    recording, counts, rng = record(folder, segments), Counts(), random.Random(seed)
    for image in range(images):
        count = rng.randint(recording.created, len(recording.operations))
        disk = power_lost_after(recording.operations, count, rng)
        counts["lost"] += not _holds(check, disk, folder / "image", recording, count, thoroughly=image % 10 == 0)
        counts["power-loss images"] += 1
    return counts


def _holds(function: Callable[..., None], disk: object, folder: Path, *arguments: object, thoroughly: bool) -> bool:
    try:
        function(disk, folder, *arguments, thoroughly=thoroughly)
    except (AssertionError, ArchiveError, StopIteration, KeyError, ValueError) as error:
        print(f"{folder}: {arguments[-1]}: {type(error).__name__}: {error}", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)
        return False
    return True


def flip_bytes(folder: Path, flips: int, seed: int = 0) -> Counts:
    """Flip bits of an archive one at a time: in the raw data of every dataset and table, and anywhere else.

    `found`: verify names something; `refused`: the archive does not open; `harmless`: everything that can be read from
    it is as before. In raw data nothing may be harmless.
    """
    intact = folder / "intact.h5"
    with new_archive(intact) as writer:
        for commit in campaign(segments=2):
            writer.commit(commit)
    rng, counts, path = random.Random(seed), Counts(), folder / "flipped.h5"
    places = _places(intact)
    used = np.flatnonzero(np.frombuffer(intact.read_bytes(), dtype=np.uint8))
    with open_archive(intact) as view:
        expected = everything(view)
    shutil.copy(intact, path)
    for number in range(flips):
        name, (first, size) = rng.choice(list(places.items()))
        raw = number % 2 == 0
        offset = first + rng.randrange(size) if raw else int(rng.choice(used))
        bit = rng.randrange(8)
        flip(path, offset, bit)
        outcome = _judge(path, expected)
        counts[outcome] += 1
        counts["flipped in raw data" if raw else "flipped anywhere"] += 1
        if outcome == "lost" or (raw and outcome == "harmless"):
            counts["unnoticed"] += 1
            print(f"bit {bit} of byte {offset} ({name if raw else 'anywhere'}): {outcome}", file=sys.stderr)
        flip(path, offset, bit)
    assert path.read_bytes() == intact.read_bytes()
    counts["datasets and tables"] = len(places)
    return counts


def _judge(path: Path, expected: list[object]) -> str:
    try:
        if verify(path):
            return "found"
        with open_archive(path) as view:
            return "harmless" if everything(view) == expected else "lost"
    except ArchiveError:
        return "refused"


def _places(path: Path) -> dict[str, tuple[int, int]]:
    """Where the raw data of each dataset of the archive stand: chunk by chunk, and only rows that exist."""
    places: dict[str, tuple[int, int]] = {}
    data = path.read_bytes()

    def visit(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if not isinstance(item, h5py.Dataset) or item.size == 0:
            return
        if item.chunks is None:
            offset, size = item.id.get_offset(), item.id.get_storage_size()
            raw = item[()].tobytes()
            if offset is None:  # compact: in the object header, which has a checksum of its own
                offset = data.find(raw, h5py.h5o.get_info(item.id).addr) if item.dtype.kind != "S" else None
            if offset is not None and offset >= 0:
                places[name] = offset, min(size, len(raw))
            return
        for number in range(item.id.get_num_chunks()):
            info = item.id.get_chunk_info(number)
            rows = min(item.chunks[0], item.shape[0] - info.chunk_offset[0])
            places[f"{name} chunk {number}"] = info.byte_offset, info.size // item.chunks[0] * rows

    with h5py.File(path) as plain:
        plain.visititems(visit)
    return places


def kill_writers(folder: Path, kills: int, seed: int = 0, say: Say = lambda _: None) -> Counts:
    """SIGKILL a process that commits, at random moments, and start it again; the next campaign when one is complete."""
    rng, counts, number = random.Random(seed), Counts(), 0
    segments = 40
    expected = campaign(("A", "B", "C"), segments)
    attempts = sum(map(len, expected))
    while counts["kills"] < kills:
        path, known = folder / f"{number}.h5", 0
        while True:
            script = [sys.executable, str(HELPERS / "busy_writer.py"), str(path), str(segments)]
            with subprocess.Popen(script, env=_environment(), stdout=subprocess.PIPE, text=True) as process:
                assert process.stdout is not None
                if rng.random() < 0.8:
                    process.stdout.readline()
                time.sleep(rng.uniform(0.0, 0.12))
                process.send_signal(signal.SIGKILL)
                said = process.stdout.read().split()
            if "finished" in said:
                break
            counts["kills"] += 1
            if not path.exists():
                continue
            known += sum(int(word) for word in said if word.isdigit())
            with open_archive(path) as view:
                found = len(view.rows("tasks"))
                counts["lost"] += max(0, known - found) + _wrong(view)
            known = found
        counts["campaigns"] += 1
        with open_archive(path) as view:
            counts["lost"] += abs(attempts - len(view.rows("tasks"))) + _wrong(view)
        number += 1
        say(f"{counts['kills']} kills")
    return counts


def kill_campaigns(folder: Path, kills: int, materials: int, seed: int = 0, say: Say = lambda _: None) -> Counts:
    """SIGKILL a campaign (master and worker in one process) at random moments until it completes; compare it then."""
    rng, counts = random.Random(seed), Counts()
    undisturbed = folder / "undisturbed.h5"
    subprocess.run(_toy(undisturbed, materials), env=_environment(), check=True, capture_output=True)
    number = 0
    while counts["kills"] < kills:
        path, before = folder / f"campaign-{number}.h5", dict[TaskKey, str]()
        while True:
            with subprocess.Popen(
                _toy(path, materials, 0.01), env=_environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            ) as process:
                assert process.stdout is not None
                process.stdout.readline()
                time.sleep(rng.uniform(0.0, 0.6))
                process.send_signal(signal.SIGKILL)
            if process.returncode == 0:
                break
            assert process.returncode == -signal.SIGKILL, process.returncode
            counts["kills"] += 1
            if path.exists():
                with open_archive(path) as view:
                    now = {task.key: task.checksum for task in stored_tasks(view)[0]}
                    counts["lost"] += sum(now.get(key) != checksum for key, checksum in before.items()) + _wrong(view)
                before = now
        counts["campaigns"] += 1
        counts["tasks"] += len(before)
        counts["different"] += differences(path, undisturbed)
        counts["lost"] += len(verify(path))
        number += 1
        say(f"{counts['kills']} kills")
    return counts


def differences(one: Path, other: Path) -> int:
    """Count results of two archives that differ, column by column, but for their provenance; all must be done."""
    with open_archive(one) as first, open_archive(other) as second:
        count = int(first.header.physics != second.header.physics) + int(first.models() != second.models())
        checksums = [{task.key: task.checksum for task in stored_tasks(view)[0]} for view in (first, second)]
        count += sum(checksums[0].get(key) != checksum for key, checksum in checksums[1].items())
        count += len(checksums[0].keys() ^ checksums[1].keys())
        for table in ("materials", *(stage for stage in STAGES if stage != "rescore")):
            columns = [_sorted(view, table) for view in (first, second)]
            count += sum(columns[0][name] != values for name, values in columns[1].items())
        return count


def _sorted(view: ArchiveView, table: str) -> dict[str, list[str]]:
    columns = {name: list(map(str, values)) for name, values in view.table(table).items() if name != "task"}
    names = [name for name in ("key", "material", "model", "segment") if name in columns]
    order = sorted(range(len(columns[names[0]])), key=lambda row: [columns[name][row] for name in names])
    return {name: [values[row] for row in order] for name, values in columns.items()}


def _wrong(view: ArchiveView) -> int:
    stored, findings = stored_tasks(view)
    return len(findings) + len(check_tasks(view, stored))


def _toy(path: Path, materials: int, seconds: float = 0.0) -> list[str]:
    script = str(HELPERS / "toy_mpi.py")
    return [sys.executable, script, str(path), "--materials", str(materials), "--seconds", str(seconds)]


def _environment() -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), str(HELPERS)])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
