"""Writers and readers as processes: killed, concurrent, kept apart."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import pytest
from archive_samples import assert_stored, attempt, campaign, dynamics_result, new_archive
from crash_disk import LocklessStorage, QuickStorage

from driver.archive.reader import open_archive
from driver.archive.records import ArchiveError
from driver.archive.verify import verify
from driver.archive.writer import ArchiveWriter

ROOT = Path(__file__).parents[3]
SEGMENTS = 12


def start(path: Path, *options: str, segments: int = SEGMENTS) -> subprocess.Popen[str]:
    """Start a writer process."""
    script = ROOT / "tests" / "helpers" / "busy_writer.py"
    return subprocess.Popen(
        [sys.executable, str(script), str(path), str(segments), *options],
        env={**os.environ, "PYTHONPATH": f"{ROOT}", "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_killed_again_and_again(tmp_path: Path) -> None:
    """SIGKILL at random moments: no committed result is lost, the rest follows, and the end is as if undisturbed."""
    path, rng = tmp_path / "archive.h5", random.Random(11)
    segments = 5 * SEGMENTS  # more than any machine does before the last kill
    expected = campaign(("A", "B", "C"), segments)
    total = sum(map(len, expected))
    committed = kills = 0
    while kills < 12:
        with start(path, segments=segments) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            # Longer while nothing has been committed, on a busy machine.
            time.sleep(rng.uniform(0.0, 0.05 if committed else 0.05 + 0.1 * kills))
            process.send_signal(signal.SIGKILL)
            said = process.stdout.read().split()
        assert "finished" not in said
        kills += 1
        committed += sum(int(word) for word in said if word.isdigit())
        with open_archive(path) as view:
            found = len(view.rows("tasks"))
        assert found >= committed
        committed = found
        assert verify(path) == []
    assert 0 < committed <= total
    with start(path, segments=segments) as process:
        assert process.communicate()[0].endswith("finished\n")
    with open_archive(path) as view:
        assert_stored(view, expected)
    assert verify(path) == []


@pytest.mark.parametrize("locks", ["yes", "no"])
def test_readers_while_a_writer_works(tmp_path: Path, locks: str) -> None:
    """Readers in a loop always find whole commits, ever more of them, and the writer finishes."""
    path = tmp_path / "archive.h5"
    new_archive(path, ("A", "B", "C")).close()
    storage = QuickStorage() if locks == "yes" else LocklessStorage()
    expected = campaign(("A", "B", "C"), SEGMENTS)
    sizes = [0]
    for commit in expected:
        sizes.append(sizes[-1] + len(commit))
    seen: list[int] = []
    with start(path, "--wait", f"--locks={locks}") as process:
        assert process.stdin is not None and process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        with open_archive(path, storage=storage) as early:
            process.stdin.write("go\n")
            process.stdin.flush()
            while process.poll() is None:
                with open_archive(path, storage=storage) as view:
                    seen.append(len(view.task_states()))
                    for key, state in view.task_states().items():
                        if state.status == "done" and key.stage == "dynamics":
                            frames = view.read(key.material, key.model, "dynamics", "replica_0/state/step")
                            assert len(frames) > key.segment
                    assert len(view.rows("tasks")) in sizes
                time.sleep(0.01)
            if locks == "yes":
                assert early.task_states() == {}
        assert process.stdout.read().endswith("finished\n")
    assert seen == sorted(seen)
    assert len(set(seen)) > 1
    with open_archive(path) as view:
        assert_stored(view, expected)
    assert verify(path) == []


def test_a_reader_does_not_hold_the_writer_up(tmp_path: Path) -> None:
    """With a reader in the way pages stay in the journal, and go to the file when it is gone."""
    path = tmp_path / "archive.h5"
    with new_archive(path) as writer:
        writer._file._checkpoint_bytes = 1
        writer.commit([attempt(dynamics_result("A", "m", 0))])
        with open_archive(path) as view:
            for segment in range(1, 6):
                writer.commit([attempt(dynamics_result("A", "m", segment))])
            assert len(view.task_states()) == 1
            assert writer._file.journal_bytes > 10_000
        writer.commit([attempt(dynamics_result("A", "m", 6))])
        assert writer._file.journal_bytes < 10_000
    assert verify(path) == []


def test_plain_h5py_keeps_its_state_too(tmp_path: Path) -> None:
    """h5py locks the file as the readers here do, and sees the last checkpoint."""
    path = tmp_path / "archive.h5"
    with new_archive(path) as writer:
        writer.commit([attempt(dynamics_result("A", "m", 0))])
        assert writer._file.checkpoint()
        writer.commit([attempt(dynamics_result("A", "m", 1))])
        with h5py.File(path) as plain:
            assert len(plain["tables/tasks"]) == 1
            writer.commit([attempt(dynamics_result("A", "m", 2))])
            assert not writer._file.checkpoint()
            assert plain["materials/A/m/dynamics/replica_0/state/step"].shape == (1,)
    with h5py.File(path) as plain:
        assert plain["materials/A/m/dynamics/replica_0/state/step"].shape == (3,)


def test_no_other_program_writes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """h5py cannot open the archive for writing while a campaign does, nor a campaign while h5py does."""
    path = tmp_path / "archive.h5"
    monkeypatch.setattr("driver.archive.journal.OPEN_SECONDS", 0.05)
    with new_archive(path) as writer:
        for segment in range(2):
            with pytest.raises(OSError, match="unable to lock file"):
                h5py.File(path, "r+")
            writer.commit([attempt(dynamics_result("A", "m", segment))])
            assert writer._file.checkpoint()
    with h5py.File(path, "r+"), pytest.raises(ArchiveError, match="open for writing in another program"):
        ArchiveWriter.open(path)
    ArchiveWriter.open(path).close()


def test_a_second_writer_is_refused_and_a_dead_one_replaced(tmp_path: Path) -> None:
    """While a process writes, others are told which one; when it has been killed, the next one takes over."""
    path = tmp_path / "archive.h5"
    with start(path, "--wait") as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for storage in (QuickStorage(), LocklessStorage()):
            with pytest.raises(ArchiveError, match=f"being written by process {process.pid} on "):
                ArchiveWriter.open(path, storage=storage)
        process.kill()
    assert path.with_name("archive.h5.lock").exists()
    with ArchiveWriter.open(path) as writer:
        assert len(writer.view.materials()) == 3
    assert not path.with_name("archive.h5.lock").exists()
