"""Whatever is killed or loses power, whenever: the archive is as of a commit, and can be continued."""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import pytest
from archive_samples import (
    HEADER,
    assert_stored,
    attempt,
    campaign,
    dynamics_result,
    material,
    model,
)
from crash_disk import Disk, QuickStorage, RecordingStorage, killed_after, power_lost_after

from driver.archive.reader import open_archive
from driver.archive.records import ArchiveError, Attempt
from driver.archive.verify import verify
from driver.archive.writer import ArchiveWriter

NAME = "archive.h5"


@dataclass(frozen=True)
class Recording:
    """A writer's run: what it asked of the system, and how far it was when.

    `created` counts the operations until the archive existed for certain; `committed[n]` those until the n-th commit.
    """

    operations: Sequence[object]
    created: int
    ready: int
    commits: Sequence[Sequence[Attempt]]
    committed: Sequence[int]

    def finished(self, count: int) -> int:
        """Commits that had returned after `count` operations."""
        return sum(operations <= count for operations in self.committed)


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """A small campaign in two sessions, the second with frequent checkpoints."""
    storage = RecordingStorage()
    path = tmp_path_factory.mktemp("run") / NAME
    commits, committed = campaign(segments=2), []
    with ArchiveWriter.create(path, HEADER, storage=storage) as writer:
        created = len(storage.operations)
        writer.add_materials([material("A"), material("B")])
        writer.add_models([model("m"), model("n")])
        ready = len(storage.operations)
        for commit in commits[:4]:
            writer.commit(commit)
            committed.append(len(storage.operations))
    with ArchiveWriter.open(path, storage=storage) as writer:
        writer._file._checkpoint_bytes = 100_000
        for commit in commits[4:]:
            writer.commit(commit)
            committed.append(len(storage.operations))
    return Recording(storage.operations, created, ready, commits, committed)


def check(disk: Disk, folder: Path, recording: Recording, count: int, *, thoroughly: bool) -> None:
    """Assert that an image holds what was committed after `count` operations, and that a writer can go on."""
    folder.mkdir()
    disk.save(folder)
    path = folder / NAME
    if not path.exists():
        assert count < recording.created
        shutil.rmtree(folder)
        return
    with open_archive(path) as view:
        done = len(view.rows("tasks"))
        sizes = [len(commit) for commit in recording.commits]
        number = next(n for n in range(len(sizes) + 1) if sum(sizes[:n]) == done)
        assert recording.finished(count) <= number <= recording.finished(count) + 1
        if count >= recording.ready:
            assert_stored(view, recording.commits[:number])
    if thoroughly:
        assert verify(path) == []
        go_on(path, recording, number)
    shutil.rmtree(folder)


def go_on(path: Path, recording: Recording, number: int) -> None:
    """Finish the campaign, and compare the whole."""
    extra = [attempt(dynamics_result("A", "m", 2))]
    with ArchiveWriter.open(path, storage=QuickStorage()) as writer:
        writer.add_materials([material("A"), material("B")])
        writer.add_models([model("m"), model("n")])
        for commit in (*recording.commits[number:], extra):
            writer.commit(commit)
        assert_stored(writer.view, [*recording.commits, extra])
    assert verify(path) == []
    with h5py.File(path) as plain:  # closed cleanly, so anything that reads HDF5 reads it
        assert len(plain["tables/tasks"]) == sum(map(len, recording.commits)) + 1


def test_every_prefix_of_a_writers_operations(tmp_path: Path, recording: Recording) -> None:
    """Killed after any operation, or in the middle of any write."""
    operations = recording.operations
    assert len(operations) > 300
    for count in range(len(operations) + 1):
        check(killed_after(operations, count), tmp_path / f"{count}", recording, count, thoroughly=count % 17 == 0)
        if count < len(operations) and operations[count].kind == "write" and count % 3 == 0:
            disk = killed_after(operations, count, 0.5)
            check(disk, tmp_path / f"{count}-torn", recording, count, thoroughly=False)


def test_power_lost_at_random(tmp_path: Path, recording: Recording) -> None:
    """Any subset and order of the unsynced sectors, sizes and names."""
    rng = random.Random(20261122)
    for image in range(120):
        count = rng.randint(recording.created, len(recording.operations))
        disk = power_lost_after(recording.operations, count, rng)
        check(disk, tmp_path / f"{image}", recording, count, thoroughly=image % 12 == 0)


def test_power_lost_while_creating(tmp_path: Path, recording: Recording) -> None:
    """Before `create` returns there is no archive, or an empty one."""
    rng = random.Random(7)
    for image in range(40):
        count = rng.randint(0, recording.created)
        folder = tmp_path / f"{image}"
        folder.mkdir()
        power_lost_after(recording.operations, count, rng).save(folder)
        try:
            with open_archive(folder / NAME) as view:
                assert view.task_states() == {}
        except ArchiveError as error:
            assert "no such archive" in str(error)
            ArchiveWriter.create(folder / NAME, HEADER, storage=QuickStorage()).close()
        assert verify(folder / NAME) == []
