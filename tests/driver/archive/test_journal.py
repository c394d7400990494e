"""The journal alone, against a plain model in memory."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import tempfile
from pathlib import Path

import pytest
from crash_disk import (
    FailingStorage,
    LocklessStorage,
    QuickStorage,
    RecordingStorage,
    killed_after,
    power_lost_after,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from driver.archive.journal import JournaledFile, journal_path
from driver.archive.journal_records import PAGE_BYTES, RECORDS_OFFSET, JournalError
from driver.archive.snapshot import SnapshotFile, StaleSnapshotError

MAX_BYTES = 5 * PAGE_BYTES


class Model:
    """What a file with transactions is: bytes, and bytes as of the last commit."""

    def __init__(self, data: bytes) -> None:
        self.committed, self.now = data, bytearray(data)

    def write(self, offset: int, data: bytes) -> None:
        if data:
            self.now.extend(bytes(max(0, offset + len(data) - len(self.now))))
            self.now[offset : offset + len(data)] = data

    def truncate(self, size: int) -> None:
        del self.now[size:]
        self.now.extend(bytes(size - len(self.now)))


def contents(file: JournaledFile | SnapshotFile) -> bytes:
    size = file.seek(0, os.SEEK_END)
    data = bytearray(size)
    file.seek(0)
    assert file.readinto(data) == size
    return bytes(data)


def still_sees(reader: SnapshotFile, seen: bytes, locks: bool) -> bool:
    try:
        assert contents(reader) == seen
    except StaleSnapshotError:
        assert not locks
        reader.close()
        return False
    return True


def new_file(folder: Path, data: bytes) -> Path:
    path = folder / "file"
    path.write_bytes(data)
    return path


actions = st.one_of(
    st.tuples(
        st.just("write"),
        st.integers(0, MAX_BYTES),
        st.one_of(st.integers(0, 64), st.integers(0, 2 * PAGE_BYTES)),
        st.integers(0, 255),
    ),
    st.tuples(st.just("truncate"), st.integers(0, MAX_BYTES)),
    st.tuples(st.just("read"), st.integers(0, MAX_BYTES), st.integers(0, 2 * PAGE_BYTES)),
    st.tuples(st.just("commit")),
    st.tuples(st.just("rollback")),
    st.tuples(st.just("checkpoint")),
    st.tuples(st.just("crash")),
    st.tuples(st.just("close")),
    st.tuples(st.just("reader")),
)


@settings(max_examples=250, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.integers(0, 3 * PAGE_BYTES),
    st.lists(actions, max_size=25),
    st.integers(0, 2**32),
    st.sampled_from([1, 4 * PAGE_BYTES, 2**30]),
    st.booleans(),
)
def test_behaves_as_a_file_with_transactions(
    size: int, steps: list[tuple], seed: int, checkpoint_bytes: int, locks: bool
) -> None:
    """Any reads, writes, truncations, commits, rollbacks, crashes and reopenings give what the model gives.

    Readers go on seeing what was committed when they opened; where locks do not work, they may say that they cannot.
    """
    storage = QuickStorage() if locks else LocklessStorage()
    folder = Path(tempfile.mkdtemp(prefix="journal"))
    start = random.Random(seed).randbytes(size)
    path, model = new_file(folder, start), Model(start)
    readers: list[tuple[SnapshotFile, bytes]] = []

    def reopen() -> JournaledFile:
        return JournaledFile(path, storage=storage, checkpoint_bytes=checkpoint_bytes)

    file = reopen()
    try:
        for name, *arguments in steps:
            if name == "write":
                offset, length, fill = arguments
                file.seek(offset)
                assert file.write(bytes([fill]) * length) == length
                model.write(offset, bytes([fill]) * length)
            elif name == "truncate":
                file.truncate(arguments[0])
                model.truncate(arguments[0])
            elif name == "read":
                offset, length = arguments
                buffer = bytearray(b"x" * length)
                file.seek(offset)
                count = file.readinto(buffer)
                expected = bytes(model.now[offset : offset + length])
                assert (count, bytes(buffer[:count])) == (len(expected), expected)
                assert not any(buffer[count:])
            elif name == "commit":
                file.commit()
                model.committed = bytes(model.now)
            elif name == "rollback":
                file.rollback()
                model.now = bytearray(model.committed)
            elif name == "checkpoint" and model.now == model.committed:
                file.commit()
                assert file.checkpoint() is not (locks and bool(readers))
                assert (locks and readers) or file.journal_bytes == RECORDS_OFFSET
            elif name == "crash":
                file._close_descriptors()
                file = reopen()
                model.now = bytearray(model.committed)
            elif name == "close":
                file.close()
                file = reopen()
                model.now = bytearray(model.committed)
            elif name == "reader" and len(readers) < 3:
                readers.append((SnapshotFile(path, storage=storage), model.committed))
            assert contents(file) == bytes(model.now)
            readers = [(reader, seen) for reader, seen in readers if still_sees(reader, seen, locks)]
    finally:
        for reader, _ in readers:
            reader.close()
        file.close()
        assert path.read_bytes() == model.committed
        assert not journal_path(path).exists()
        shutil.rmtree(folder)


def random_session(path: Path, storage: RecordingStorage, rng: random.Random, steps: int) -> list[tuple[int, bytes]]:
    """Write at random; return the number of operations by the end of each commit, and what was committed."""
    commits = [(len(storage.operations), path.read_bytes())]
    with JournaledFile(path, storage=storage, checkpoint_bytes=6 * PAGE_BYTES) as file:
        commits.append((len(storage.operations), commits[0][1]))
        for _ in range(steps):
            for _ in range(rng.randint(1, 4)):
                file.seek(rng.randint(0, MAX_BYTES))
                file.write(rng.randbytes(rng.choice([8, 200, 3000, 9000])))
            if rng.random() < 0.3:
                file.truncate(rng.randint(0, MAX_BYTES))
            seen = contents(file)
            file.commit()
            commits.append((len(storage.operations), seen))
            if rng.random() < 0.1:
                file.rollback()
    commits.append((len(storage.operations), commits[-1][1]))
    return commits


def recorded(folder: Path, seed: int, steps: int = 12) -> tuple[RecordingStorage, list[tuple[int, bytes]]]:
    rng, storage = random.Random(seed), RecordingStorage()
    path = folder / "file"
    descriptor = storage.open(path, write=True, create=True)
    storage.write_at(descriptor, rng.randbytes(3 * PAGE_BYTES + 100), 0)
    storage.sync(descriptor)
    storage.sync_directory(folder)
    storage.close(descriptor)
    return storage, random_session(path, storage, rng, steps)


def allowed(commits: list[tuple[int, bytes]], count: int) -> list[bytes]:
    """What may be found after `count` operations: the last finished commit, or the one in progress."""
    finished = [number for number, (operations, _) in enumerate(commits) if operations <= count]
    last = finished[-1]
    return [data for _, data in commits[last : last + 2]]


def reopened(folder: Path) -> bytes:
    """What readers and then the next writer find; they have to agree."""
    path = folder / "file"
    with SnapshotFile(path) as reader:
        seen = contents(reader)
    with JournaledFile(path, storage=QuickStorage()) as file:
        assert contents(file) == seen
        file.seek(0)
        file.write(b"continued")
        file.commit()
    assert path.read_bytes().startswith(b"continued")
    return seen


@pytest.mark.parametrize("seed", range(3))
def test_killed_at_any_operation(tmp_path: Path, seed: int) -> None:
    """Every prefix of what a writer asks of the system, whole or with half of the next write, is a commit."""
    (tmp_path / "run").mkdir()
    storage, commits = recorded(tmp_path / "run", seed)
    assert len(storage.operations) > 100
    for count in range(commits[0][0], len(storage.operations) + 1):
        for fraction in (0.0, 0.5):
            folder = Path(tempfile.mkdtemp(dir=tmp_path))
            killed_after(storage.operations, count, fraction).save(folder)
            assert reopened(folder) in allowed(commits, count)


@pytest.mark.parametrize("seed", range(3))
def test_power_lost_at_any_operation(tmp_path: Path, seed: int) -> None:
    """Any subset of the unsynced sectors, names and sizes is a commit too."""
    (tmp_path / "run").mkdir()
    storage, commits = recorded(tmp_path / "run", seed)
    rng = random.Random(seed)
    for _ in range(300):
        count = rng.randint(commits[0][0], len(storage.operations))
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        power_lost_after(storage.operations, count, rng).save(folder)
        assert reopened(folder) in allowed(commits, count)


def test_kill_of_the_recovery_itself(tmp_path: Path) -> None:
    """A writer that dies while it takes over from a dead one leaves the same commit behind."""
    (tmp_path / "run").mkdir()
    storage, commits = recorded(tmp_path / "run", 7)
    count = commits[-3][0] + 2
    disk = killed_after(storage.operations, count)
    first = tmp_path / "first"
    first.mkdir()
    disk.save(first)
    again = RecordingStorage()
    JournaledFile(first / "file", storage=again).close()
    assert len(again.operations) > 5
    for stop in range(len(again.operations) + 1):
        half = disk.copy()
        for operation in again.operations[:stop]:
            half.apply(operation)
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        half.save(folder)
        assert reopened(folder) in allowed(commits, count)


def two_commits(path: Path) -> tuple[bytes, int]:
    """Leave a journal with two records; return it and where the second starts."""
    file = JournaledFile(path, storage=QuickStorage())
    file.write(b"a" * 5000)
    file.commit()
    second = file.journal_bytes
    file.seek(0)
    file.write(b"b" * 5000)
    file.commit()
    file._close_descriptors()
    return journal_path(path).read_bytes(), second


def test_torn_tail_is_no_commit(tmp_path: Path) -> None:
    """Whatever is missing or wrong in the last record, the one before it holds."""
    path = new_file(tmp_path, bytes(10000))
    journal, second = two_commits(path)
    before = b"a" * 5000 + bytes(5000)
    for cut in [*range(second, len(journal), 97), len(journal) - 1]:
        journal_path(path).write_bytes(journal[:cut])
        with SnapshotFile(path) as reader:
            assert contents(reader) == before
    for place in [*range(second, len(journal), 97), len(journal) - 1]:
        flipped = bytearray(journal)
        flipped[place] ^= 0x10
        journal_path(path).write_bytes(flipped)
        with SnapshotFile(path) as reader:
            assert contents(reader) == before


def test_damage_before_later_commits_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged record with a commit behind it is no torn tail: losing that commit silently would be wrong."""
    monkeypatch.setattr("driver.archive.snapshot._PAUSE_SECONDS", 0.0)
    path = new_file(tmp_path, bytes(10000))
    journal, second = two_commits(path)
    for place in [*range(0, 44, 7), *range(RECORDS_OFFSET, second, 61)]:
        flipped = bytearray(journal)
        flipped[place] ^= 0x10
        journal_path(path).write_bytes(flipped)
        with pytest.raises(JournalError, match="journal"):
            JournaledFile(path)
        with pytest.raises(JournalError, match="journal"):
            SnapshotFile(path)


@pytest.mark.parametrize("other", [bytes(6000), b"x" * 20000])
def test_journal_of_another_file_is_refused(tmp_path: Path, other: bytes) -> None:
    """An older copy put in place of the file is not overwritten with pages that do not belong to it."""
    path = new_file(tmp_path, bytes(10000))
    two_commits(path)
    path.write_bytes(other)
    with pytest.raises(JournalError, match="another"):
        JournaledFile(path)
    assert path.read_bytes() == other


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("only", ["file", "file.journal"])
def test_full_disk(tmp_path: Path, error: int, only: str) -> None:
    """Wherever the disk fails, the object says so for good, and the next one finds the last commit."""
    for budget in range(0, 40000, 1777):
        path = new_file(tmp_path, bytes(10000))
        storage = FailingStorage(10**9, error, only)
        file = JournaledFile(path, storage=storage, checkpoint_bytes=3 * PAGE_BYTES)
        storage.budget = budget
        committed = bytes(10000)
        raised = 0
        for number in range(1, 6):
            try:
                file.seek(2500 * number)
                file.write(bytes([number]) * 7000)
                seen = contents(file)
                file.commit()
                committed = seen
            except OSError as problem:
                assert problem.errno == error
                raised += 1
        assert (raised > 0) == (storage.failures > 0)
        if raised:
            with pytest.raises(OSError, match="injected"):
                file.commit()
        with contextlib.suppress(OSError):  # emptying the journal may fail as well
            file.close()
        with JournaledFile(path, storage=QuickStorage()) as again:
            assert contents(again) in (committed, seen)


def test_nothing_to_commit_writes_nothing(tmp_path: Path) -> None:
    """Writing what is there already leaves no trace."""
    path = new_file(tmp_path, bytes(10000))
    with JournaledFile(path, storage=QuickStorage()) as file:
        file.seek(100)
        file.write(bytes(7000))
        file.commit()
        assert file.journal_bytes == RECORDS_OFFSET


def test_reader_without_locks_notices_a_later_session(tmp_path: Path) -> None:
    """A reader whose journal has been removed, and another begun, does not mix the two states."""
    path = new_file(tmp_path, bytes(10000))
    first = JournaledFile(path, storage=LocklessStorage())
    reader = SnapshotFile(path, storage=LocklessStorage())
    first.close()
    with JournaledFile(path, storage=LocklessStorage()) as second:
        second.write(b"b" * 9000)
        second.commit()
    with pytest.raises(StaleSnapshotError):
        contents(reader)
    reader.close()


def test_reader_with_locks_keeps_its_state_across_sessions(tmp_path: Path) -> None:
    """A reader's lock outlives the writer: the next one takes the journal over without moving a page."""
    path = new_file(tmp_path, bytes(10000))
    first = JournaledFile(path, storage=QuickStorage())
    with SnapshotFile(path) as reader:
        for text in (b"b", b"c"):
            first.seek(0)
            first.write(text * 9000)
            first.commit()
            first.close()
            assert journal_path(path).exists()
            assert contents(reader) == bytes(10000)
            first = JournaledFile(path, storage=QuickStorage())
            assert contents(first) == text * 9000 + bytes(1000)
    first.close()
    assert path.read_bytes() == b"c" * 9000 + bytes(1000)
