"""Disk full, quota, file size limits, read-only: one clear line, nothing committed lost, and it goes on later."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from archive_samples import HEADER, assert_stored, campaign, material, new_archive
from crash_disk import FailingStorage, QuickStorage

from driver.archive.records import ArchiveError, Attempt, StorageError
from driver.archive.storage import Storage
from driver.archive.verify import verify
from driver.archive.writer import ArchiveWriter

COMMITS = campaign(segments=3)


def commit_until_refused(writer: ArchiveWriter, commits: Sequence[Sequence[Attempt]]) -> tuple[int, str]:
    """Commit until the file system refuses; return how many commits there are, and what the writer said."""
    for number, commit in enumerate(commits):
        try:
            writer.commit(commit)
        except StorageError as error:
            assert_stored(writer.view, commits[:number])
            with pytest.raises(StorageError):
                writer.commit(commit)
            return number, str(error)
    pytest.fail("the file system never refused")


def continue_later(path: Path, done: int) -> None:
    """There is room again: the next writer finds what was committed, and finishes."""
    with ArchiveWriter.open(path, storage=QuickStorage()) as writer:
        found = len(writer.view.rows("tasks"))
        assert found in (sum(map(len, COMMITS[:done])), sum(map(len, COMMITS[: done + 1])))
        for number, commit in enumerate(COMMITS):
            if sum(map(len, COMMITS[: number + 1])) > found:
                writer.commit(commit)
        assert_stored(writer.view, COMMITS)
    assert verify(path) == []


@pytest.mark.parametrize(
    ("error", "words", "only"),
    [
        (errno.ENOSPC, "no space left on the file system", "archive.h5"),
        (errno.ENOSPC, "no space left on the file system", ".journal"),
        (errno.EDQUOT, "disk quota exceeded", ""),
        (errno.EIO, "injected", ""),
    ],
)
def test_the_disk_fails_somewhere(tmp_path: Path, error: int, words: str, only: str) -> None:
    for number, budget in enumerate(range(0, 60_000, 9_001)):
        path = tmp_path / f"{number}" / "archive.h5"
        storage = FailingStorage(10**9, error, only)
        writer = new_archive(path, storage=storage)
        storage.budget = budget
        done, message = commit_until_refused(writer, COMMITS)
        assert message.startswith(f"{path} cannot be written: {words}")
        assert "Nothing committed is lost" in message
        assert "\n" not in message
        writer.close()
        assert not path.with_name("archive.h5.lock").exists()
        continue_later(path, done)


def test_no_room_to_create(tmp_path: Path) -> None:
    path = tmp_path / "archive.h5"
    with pytest.raises(StorageError, match="no space left"):
        ArchiveWriter.create(path, HEADER, storage=FailingStorage(5000, only="archive.h5.new"))
    assert not path.exists()
    new_archive(path).close()
    assert verify(path) == []


def test_file_size_limit(tmp_path: Path) -> None:
    """The kernel's own refusal, in the middle of a write."""
    path = tmp_path / "archive.h5"
    writer = new_archive(path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 9_000, limits[1]))
    try:
        done, message = commit_until_refused(writer, COMMITS)
        assert "file size limit reached" in message
        writer.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    continue_later(path, done)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_real_full_disk(small_disk: Path) -> None:
    path = small_disk / "archive.h5"
    writer = new_archive(path)
    filler = small_disk / "filler"
    room = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    filler.write_bytes(bytes(max(0, room - 40_000)))
    done, message = commit_until_refused(writer, COMMITS)
    assert "no space left on the file system" in message
    writer.close()
    filler.unlink()
    continue_later(path, done)


class ReadOnlyStorage(Storage):
    """A file system that is mounted read-only."""

    def open(self, path: Path, **how: bool) -> int:
        if how.get("write"):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return super().open(path, **how)


def test_read_only_file_system(tmp_path: Path) -> None:
    path = tmp_path / "archive.h5"
    with new_archive(path) as writer:
        writer.commit(COMMITS[0])
    with pytest.raises(ArchiveError, match="cannot be written: Read-only file system"):
        ArchiveWriter.open(path, storage=ReadOnlyStorage())
    assert verify(path) == []


def test_a_reading_error_is_no_full_disk(tmp_path: Path) -> None:
    """A refused material is the user's mistake, not the disk's, and does not end the writer."""
    with new_archive(tmp_path / "archive.h5") as writer:
        with pytest.raises(ArchiveError) as error:
            writer.add_materials([material("a/b")])
        assert not isinstance(error.value, StorageError)
        writer.commit(COMMITS[0])
