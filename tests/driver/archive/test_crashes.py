"""Whatever is killed or loses power, whenever: the archive is as of a commit, and can be continued."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from archive_samples import HEADER
from crash_disk import QuickStorage, killed_after, power_lost_after
from crash_replay import NAME, Recording, check, record

from driver.archive.reader import open_archive
from driver.archive.records import ArchiveError
from driver.archive.verify import verify
from driver.archive.writer import ArchiveWriter


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    return record(tmp_path_factory.mktemp("run"))


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
