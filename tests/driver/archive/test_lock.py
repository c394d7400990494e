"""The writer's lock: taken over only when its holder is provably gone."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from crash_disk import LocklessStorage, QuickStorage

from driver.archive.lock import Holder, WriterLock
from driver.archive.records import ArchiveError


def leave_lock(archive: Path, **changes: object) -> Path:
    """Leave the lock file of some other process."""
    holder = dataclasses.replace(Holder.present(), **changes)
    path = archive.with_name(archive.name + ".lock")
    path.write_text(json.dumps(dataclasses.asdict(holder)))
    return path


@pytest.fixture
def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize("storage", [QuickStorage(), LocklessStorage()])
def test_one_holder_at_a_time(tmp_path: Path, storage: QuickStorage) -> None:
    archive = tmp_path / "archive.h5"
    first = WriterLock(archive, storage=storage)
    with pytest.raises(ArchiveError, match=f"process {os.getpid()} on .*"):
        WriterLock(archive, storage=storage)
    first.release()
    first.release()
    WriterLock(archive, storage=storage).release()
    assert list(tmp_path.iterdir()) == []


def test_dead_process_of_this_host_is_replaced(tmp_path: Path, dead_pid: int) -> None:
    path = leave_lock(tmp_path / "archive.h5", pid=dead_pid)
    lock = WriterLock(tmp_path / "archive.h5")
    assert json.loads(path.read_text())["pid"] == os.getpid()
    lock.release()


def test_a_number_used_again_is_not_the_holder(tmp_path: Path) -> None:
    """This process has the holder's number but started at another time."""
    leave_lock(tmp_path / "archive.h5", started="1")
    WriterLock(tmp_path / "archive.h5").release()


def test_holder_from_before_a_reboot_is_gone(tmp_path: Path) -> None:
    leave_lock(tmp_path / "archive.h5", boot="another-boot")
    WriterLock(tmp_path / "archive.h5").release()


def test_zombie_is_gone(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and nobody has taken notice
    leave_lock(tmp_path / "archive.h5", pid=process.pid)
    WriterLock(tmp_path / "archive.h5").release()
    process.wait()


def test_other_host_is_never_presumed_dead(tmp_path: Path, dead_pid: int) -> None:
    archive = tmp_path / "archive.h5"
    path = leave_lock(archive, host="node17", pid=dead_pid, job="4711")
    with pytest.raises(ArchiveError) as refusal:
        WriterLock(archive)
    assert "node17, Slurm job 4711" in str(refusal.value)
    assert f"If that process is gone, remove {path}" in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(("restart", "gone"), [("1", True), ("0", False), ("", False)])
def test_slurm_ends_a_job_before_it_starts_it_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restart: str, gone: bool
) -> None:
    """After a requeue the same job may run elsewhere; its first incarnation is gone."""
    archive = tmp_path / "archive.h5"
    leave_lock(archive, host="node17", job="4711", restart="")
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    monkeypatch.setenv("SLURM_RESTART_COUNT", restart)
    if gone:
        WriterLock(archive).release()
    else:
        with pytest.raises(ArchiveError, match="node17"):
            WriterLock(archive)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"host": 1}'])
def test_torn_lock_file_names_nobody(tmp_path: Path, text: str) -> None:
    """As after a power loss; whoever lives still holds its lock on the file itself."""
    (tmp_path / "archive.h5.lock").write_text(text)
    WriterLock(tmp_path / "archive.h5").release()


def test_only_the_owner_removes_the_lock(tmp_path: Path) -> None:
    """One that was removed by hand and taken by another process stays that process's."""
    archive = tmp_path / "archive.h5"
    lock = WriterLock(archive)
    lock.path.unlink()
    other = leave_lock(archive, host="node17")
    lock.release()
    assert other.exists()
