"""The writer's lock: taken over only when its holder is provably gone."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from crash_disk import LocklessStorage, QuickStorage
from stub_queue import SLURM_HERE, no_job, slurm_job, stub

from driver.archive.holders import Holder, judge
from driver.archive.journal import journal_path
from driver.archive.lock import WriterLock
from driver.archive.queues import JobState
from driver.archive.reader import open_archive
from driver.archive.records import ArchiveError, Header
from driver.archive.writer import ArchiveWriter


@pytest.fixture(autouse=True)
def outside(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """In no job, on a machine whose batch systems do not answer."""
    no_job(monkeypatch)
    stub(monkeypatch, tmp_path_factory.mktemp("silent"), {"scontrol x": ("", "", 0)})


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


def test_holder_from_before_a_reboot_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    leave_lock(tmp_path / "archive.h5", boot="another-boot", machine="m")
    here = Holder.present
    monkeypatch.setattr(Holder, "present", lambda: dataclasses.replace(here(), machine="m", boot="boot"))
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
    assert "the state of Slurm job 4711 cannot be told (scontrol" in str(refusal.value)
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


@pytest.mark.parametrize("text", ["", "{", "[]", '{"host": 1}', '{"host": 1, "pid": "a"}'])
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


# -- jobs --------------------------------------------------------------------------------------------------------------

SHOW = "scontrol --oneliner show job 4711"
OTHER = {"host": "node17", "job": "4711", "scheduler": "slurm", "cluster": "here"}


@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize("state", ["COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY"])
def test_the_lock_of_a_job_that_is_over_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, state: str, earlier: bool
) -> None:
    stub(monkeypatch, tmp_path / "bin", {**SLURM_HERE, SHOW: (slurm_job("4711", state), "", 0)})
    archive = tmp_path / "archive.h5"
    if earlier:  # as earlier versions wrote it
        old = {"host": "node17", "pid": 5, "started": "1", "boot": "b", "job": "4711", "restart": "", "since": "x"}
        archive.with_name("archive.h5.lock").write_text(json.dumps(old))
    else:
        leave_lock(archive, **OTHER)
    lock = WriterLock(archive)
    assert json.loads(lock.path.read_text())["pid"] == os.getpid()
    lock.release()
    assert not lock.path.exists()


def test_the_lock_of_a_job_that_runs_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub(monkeypatch, tmp_path / "bin", {**SLURM_HERE, SHOW: (slurm_job("4711", "RUNNING"), "", 0)})
    path = leave_lock(tmp_path / "archive.h5", **OTHER)
    before = path.read_bytes()
    with pytest.raises(ArchiveError) as refusal:
        WriterLock(tmp_path / "archive.h5")
    text = str(refusal.value)
    assert "on node17, Slurm job 4711, since" in text
    assert "Slurm job 4711 is RUNNING; `scancel 4711` would end it" in text
    assert "remove" not in text, "its lock file protects it"
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("job", "answers", "command"),
    [
        (
            {"scheduler": "pbs", "job": "12.s", "cluster": "s"},
            {"qstat -f 12.s": ("job_state = {}\n", "", 0)},
            "qdel 12.s",
        ),
        ({"scheduler": "lsf", "job": "12"}, {"bjobs -noheader -o stat 12": ("{}\n", "", 0)}, "bkill 12"),
        (
            {"scheduler": "flux", "job": "f1"},
            {"flux jobs --no-header --format={{state}} f1": ("{}\n", "", 0)},
            "flux cancel f1",
        ),
    ],
)
def test_other_batch_systems(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    job: dict[str, str],
    answers: dict[str, tuple[str, str, int]],
    command: str,
) -> None:
    words = {"pbs": ("R", "F"), "lsf": ("RUN", "EXIT"), "flux": ("RUN", "INACTIVE")}[job["scheduler"]]
    archive = tmp_path / "archive.h5"
    leave_lock(archive, host="node17", **job)
    for word in words:
        stub(
            monkeypatch,
            tmp_path / word,
            {line.format(): (out.format(word), err, code) for line, (out, err, code) in answers.items()},
        )
        if word == words[0]:
            with pytest.raises(ArchiveError, match=f"`{command}` would end it"):
                WriterLock(archive)
    WriterLock(archive).release()


def test_a_living_process_is_never_robbed_whatever_the_queue_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that has outlived its job, on this machine."""
    asked = stub(monkeypatch, tmp_path / "bin", {**SLURM_HERE, SHOW: (slurm_job("4711", "COMPLETED"), "", 0)})
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        started = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[19]
        leave_lock(
            tmp_path / "archive.h5", **{**OTHER, "host": Holder.present().host}, pid=process.pid, started=started
        )
        with pytest.raises(ArchiveError, match=f"written by process {process.pid}"):
            WriterLock(tmp_path / "archive.h5")
        process.kill()
    assert not asked.exists()


def test_a_stopped_process_is_alive_and_the_message_says_how_to_go_on(tmp_path: Path) -> None:
    code = f"""
import sys
from pathlib import Path
from driver.archive.lock import WriterLock
lock = WriterLock(Path({str(tmp_path / "archive.h5")!r}))
print("ready", flush=True)
input()
lock.release()
"""
    root = Path(__file__).parents[3]
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        with pytest.raises(ArchiveError, match=f"it is stopped: `kill -CONT {process.pid}` lets it go on"):
            WriterLock(tmp_path / "archive.h5")
        process.send_signal(signal.SIGCONT)
        process.communicate("\n")
    assert not (tmp_path / "archive.h5.lock").exists()


# -- judging -----------------------------------------------------------------------------------------------------------

HERE = Holder("host", 1, "s", "boot", machine="m", namespace="pid:[1]", token="a" * 16)


def judged(locked: bool | None = None, **changes: object) -> bool | None:
    """Judge a process that is not there (number 2^22 + 1), seen from `HERE`."""
    holder = dataclasses.replace(HERE, **{"pid": 2**22 + 1, "token": "b" * 16, **changes})
    return judge(holder, HERE, locked=locked, ask=lambda job: JobState(None, "")).gone


def test_what_can_be_told_of_a_process_that_is_not_here() -> None:
    assert judged() is True
    assert judged(locked=False) is True
    assert judged(locked=True) is False, "a child of it may hold the file"
    assert judged(pid=10**30) is True, "no process has such a number"
    # In another container its number means something else; the lock on the file tells, where there is one.
    assert judged(namespace="pid:[2]") is None
    assert judged(namespace="pid:[2]", locked=True) is False
    assert judged(namespace="pid:[2]", locked=False, locks=True) is True
    assert judged(host="container", namespace="pid:[2]", locked=False, locks=True) is True
    assert judged(host="container", namespace="pid:[2]", locked=False, locks=False) is None
    # Restarted, or another machine of the same name.
    assert judged(boot="earlier") is True
    assert judged(boot="other", machine="n") is None
    assert judged(boot="other", machine="") is None
    assert judged(boot="other", machine="", token="") is True, "earlier versions"
    # On another machine.
    assert judged(host="other", boot="other") is None
    assert judged(host="other", boot="other", locked=False, locks=True) is None, "every node may grant every lock"


# -- names -------------------------------------------------------------------------------------------------------------


def test_an_archive_has_one_lock_and_one_journal_by_whatever_link_it_is_reached(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    real, link = tmp_path / "scratch" / "real.h5", tmp_path / "archive.h5"
    link.symlink_to(real)
    with ArchiveWriter.create(link, Header("test", 7, "name: test\n", {}, {})) as writer:
        assert link.is_symlink() and real.exists()
        for path in (link, real):
            with pytest.raises(ArchiveError, match=rf"{path.name} is being written by process {os.getpid()}"):
                ArchiveWriter.open(path)
        writer.set_header_config("name: other\n")
        assert journal_path(link) == journal_path(real) == real.with_name("real.h5.journal")
        for path in (link, real):
            with open_archive(path) as view:
                assert view.header.config_yaml == "name: other\n"
    assert [path.name for path in tmp_path.iterdir() if path.suffix in (".lock", ".journal")] == []
    with ArchiveWriter.open(link) as writer:
        assert writer.view.header.config_yaml == "name: other\n"


def test_a_lock_that_is_a_symbolic_link_is_named_and_what_it_points_to_left_alone(tmp_path: Path) -> None:
    precious = tmp_path / "precious.csv"
    precious.write_text("data")
    (tmp_path / "archive.h5.lock").symlink_to(precious)
    with pytest.raises(ArchiveError, match=r"archive\.h5\.lock: it is no regular file, .*; remove it"):
        WriterLock(tmp_path / "archive.h5")
    assert precious.read_text() == "data"


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user")
@pytest.mark.parametrize("what", ["folder", "lock"])
def test_what_may_not_be_written_or_read_is_named(tmp_path: Path, what: str) -> None:
    """A folder of another user; a lock file that another user's umask keeps secret."""
    code = """
import os
from pathlib import Path
from driver.archive.lock import WriterLock
from driver.archive.records import ArchiveError
os.setgid(65534), os.setuid(65534)
try:
    WriterLock(Path("archive.h5"))
except ArchiveError as error:
    print(error)
"""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    try:
        folder.chmod(0o755 if what == "folder" else 0o777)
        if what == "lock":
            leave_lock(folder / "archive.h5").chmod(0o600)
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
        done = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)
    finally:
        shutil.rmtree(folder)
    lock = folder / "archive.h5.lock" if what == "lock" else folder
    assert done.stdout == f"archive.h5 cannot be locked: {lock}: Permission denied\n", done.stderr
