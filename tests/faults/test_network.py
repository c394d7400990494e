"""Archives on a network file system: delays, caches that lag behind, handles that go stale, errors now and then."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from archive_samples import assert_stored, campaign, new_archive
from crash_disk import NetworkStorage

from driver.archive.reader import ArchiveView, open_archive
from driver.archive.records import ArchiveError, StorageError
from driver.archive.storage import Storage
from driver.archive.verify import check_tasks, stored_tasks, verify
from driver.archive.writer import ArchiveWriter

ROOT = Path(__file__).parents[2]
SEGMENTS = 8
EXPECTED = campaign(("A", "B", "C"), SEGMENTS)


def start(path: Path, *options: str) -> subprocess.Popen[str]:
    """Start a writer process on the machine that has the disk."""
    script = ROOT / "tests" / "helpers" / "busy_writer.py"
    command = [sys.executable, str(script), str(path), str(SEGMENTS), "--wait", "--pause", "0.04", *options]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def look(view: ArchiveView) -> int:
    """Check every committed result bit by bit; return how many attempts there are."""
    sizes = [sum(map(len, EXPECTED[:number])) for number in range(len(EXPECTED) + 1)]
    attempts = len(view.rows("tasks"))
    assert attempts in sizes
    stored, findings = stored_tasks(view)
    assert findings == []
    assert check_tasks(view, stored) == []
    return attempts


@pytest.mark.parametrize("locks", ["yes", "no"])
@pytest.mark.parametrize("rate", [0.0, 0.01])
def test_readers_on_another_machine(tmp_path: Path, locks: str, rate: float) -> None:
    """What they find is a set of whole commits, if perhaps not the newest; handles that go stale are opened again."""
    path = tmp_path / "archive.h5"
    new_archive(path, ("A", "B", "C")).close()
    seen = []
    storage = NetworkStorage(locks=locks == "yes", seed=1, rate=rate)
    with start(path, f"--locks={locks}") as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.stdin.write("go\n")
        process.stdin.flush()
        while process.poll() is None:
            with open_archive(path, storage=storage) as view:
                seen.append(look(view))
        assert process.stdout.read().endswith("finished\n")
    assert len(set(seen)) > 1
    assert bool(storage.failures) == bool(rate)
    with open_archive(path, storage=NetworkStorage()) as view:
        assert_stored(view, EXPECTED)


def test_errors_of_the_server_are_one_clear_line(tmp_path: Path) -> None:
    """A reader that gets an I/O error says so; it never reports wrong data."""
    path = tmp_path / "archive.h5"
    with new_archive(path, ("A", "B", "C")) as writer:
        for commit in EXPECTED:
            writer.commit(commit)
    outcomes = []
    for seed in range(30):
        storage = NetworkStorage(seed=seed, rate=0.003, errors=(errno.EIO, errno.ESTALE))
        try:
            with open_archive(path, storage=storage) as view:
                assert_stored(view, EXPECTED)
            outcomes.append("read")
        except ArchiveError as error:
            assert "\n" not in str(error) and str(path) in str(error)
            outcomes.append("refused")
    assert set(outcomes) == {"read", "refused"}


class FlakyStorage(Storage):
    """After a random number of calls the server fails, again and again; a write that fails may have been done."""

    def __init__(self, number: int, seed: int) -> None:
        self._rng = random.Random(seed)
        self._number = number
        self._left = 50

    def _count(self) -> None:
        self._left -= 1
        if self._left == 0:
            self._left = self._rng.randint(2, 450)
            raise OSError(self._number, os.strerror(self._number))

    def read_at(self, descriptor: int, buffer: memoryview, offset: int) -> int:
        self._count()
        return super().read_at(descriptor, buffer, offset)

    def write_at(self, descriptor: int, data: bytes | bytearray | memoryview, offset: int) -> None:
        super().write_at(descriptor, data, offset)
        self._count()

    def sync(self, descriptor: int) -> None:
        self._count()

    def sync_directory(self, directory: Path) -> None:
        self._count()


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE])
def test_a_writer_on_a_failing_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, seed: int) -> None:
    """Failed reads are tried again, other failures end the writer; the next one goes on from the last commit."""
    monkeypatch.setattr("driver.archive.journal.READ_PAUSES_S", (0.0,) * 6)
    commits = campaign(("A", "B", "C"), 30)
    path = tmp_path / "archive.h5"
    new_archive(path, ("A", "B", "C")).close()
    storage = FlakyStorage(number, seed)
    failures = 0
    while failures < 200:
        try:
            with ArchiveWriter.open(path, storage=storage) as writer:
                done = len(writer.view.rows("tasks"))
                for commit in commits:
                    done -= len(commit)
                    if done < 0:
                        writer.commit(commit)
            break
        except StorageError as error:
            failures += 1
            assert os.strerror(number) in str(error)
        if failures % 4 == 0:
            assert verify(path) == []
    assert 3 < failures < 200
    with open_archive(path) as view:
        assert_stored(view, commits)
    assert verify(path) == []


DEAD_SERVER = """
import os, sys
from pathlib import Path
import archive_samples, driver.archive.journal
from driver.archive.storage import Storage
from driver.archive.writer import ArchiveWriter
driver.archive.journal.READ_PAUSES_S = (0.01,)

class Dying(Storage):
    left = 10**9
    def read_at(self, *arguments):
        self.left -= 1
        if self.left < 0:
            raise OSError(5, os.strerror(5))
        return super().read_at(*arguments)

storage = Dying()
with ArchiveWriter.open(sys.argv[1], storage=storage) as writer:
    storage.left = int(sys.argv[2])
    done = len(writer.view.rows("tasks"))
    for commit in archive_samples.campaign(("A", "B", "C"), 30):
        done -= len(commit)
        if done < 0:
            writer.commit(commit)
print("finished")
"""


def test_a_server_that_does_not_come_back(tmp_path: Path) -> None:
    """HDF5 would crash; instead one line and exit code 75, and nothing committed is lost."""
    path = tmp_path / "archive.h5"
    new_archive(path, ("A", "B", "C")).close()
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests' / 'helpers'}"}
    for reads in (3, 20, 60, 100_000):
        command = [sys.executable, "-c", DEAD_SERVER, str(path), str(reads)]
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
        if reads < 100_000:
            assert result.returncode == 75
            assert result.stderr.startswith(f"latdyn: {path} cannot be written: Input/output error. Nothing committed")
            assert len(result.stderr.splitlines()) == 1
        assert verify(path) == []
    assert result.stdout == "finished\n"
    with open_archive(path) as view:
        assert_stored(view, campaign(("A", "B", "C"), 30))
