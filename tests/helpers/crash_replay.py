"""A writer's run, recorded, and what a machine that died in the middle of it leaves: is it as of a commit?"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
from archive_samples import HEADER, assert_stored, attempt, campaign, dynamics_result, material, model
from crash_disk import Disk, Operation, QuickStorage, RecordingStorage

from driver.archive.reader import open_archive
from driver.archive.records import Attempt
from driver.archive.verify import verify
from driver.archive.writer import ArchiveWriter

NAME = "archive.h5"


@dataclass(frozen=True)
class Recording:
    """A writer's run: what it asked of the system, and how far it was when.

    `created` counts the operations until the archive existed for certain; `committed[n]` those until the n-th commit.
    """

    operations: Sequence[Operation]
    created: int
    ready: int
    commits: Sequence[Sequence[Attempt]]
    committed: Sequence[int]

    def finished(self, count: int) -> int:
        """Commits that had returned after `count` operations."""
        return sum(operations <= count for operations in self.committed)


def record(folder: Path, segments: int = 2) -> Recording:
    """Run a small campaign in two sessions, the second with frequent checkpoints."""
    storage = RecordingStorage()
    path = folder / NAME
    commits, committed = campaign(segments=segments), []
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
    segments = sum(item.key.material == "A" and item.key.stage == "dynamics" for c in recording.commits for item in c)
    extra = [attempt(dynamics_result("A", "m", segments))]
    with ArchiveWriter.open(path, storage=QuickStorage()) as writer:
        writer.add_materials([material("A"), material("B")])
        writer.add_models([model("m"), model("n")])
        for commit in (*recording.commits[number:], extra):
            writer.commit(commit)
        assert_stored(writer.view, [*recording.commits, extra])
    assert verify(path) == []
    with h5py.File(path) as plain:  # closed cleanly, so anything that reads HDF5 reads it
        assert len(plain["tables/tasks"]) == sum(map(len, recording.commits)) + 1
