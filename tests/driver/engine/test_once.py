"""One process makes, the others wait; killed makers leave nothing behind that harms."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from driver.archive.holders import Holder
from driver.archive.queues import Job, JobState
from driver.engine import once
from driver.engine.once import made_once
from driver.errors import InterruptedRunError

MAKER = """
import os, sys, time
from pathlib import Path
from driver.engine.once import made_once

def make(folder):
    with open(sys.argv[2], "a") as log:
        log.write(f"{os.getpid()}\\n")
    (folder / "begun").write_text("x")
    time.sleep(float(sys.argv[3]))
    (folder / "data").write_text("complete")

print((made_once(Path(sys.argv[1]), make) / "data").read_text())
"""


def start(target: Path, log: Path, seconds: float) -> subprocess.Popen[str]:
    arguments = [sys.executable, "-c", MAKER, str(target), str(log), str(seconds)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_many_processes_make_it_once(tmp_path: Path) -> None:
    target, log = tmp_path / "cache" / "made", tmp_path / "log"
    processes = [start(target, log, 0.5) for _ in range(6)]
    assert [p.communicate(timeout=60)[0] for p in processes] == ["complete\n"] * 6
    assert len(log.read_text().splitlines()) == 1
    assert sorted(p.name for p in target.parent.iterdir()) == ["made"]


def test_a_killed_maker_is_replaced(tmp_path: Path) -> None:
    target, log = tmp_path / "made", tmp_path / "log"
    first = start(target, log, 60)
    wait_for(log)
    second = start(target, log, 0.1)
    time.sleep(0.5)
    assert second.poll() is None and not target.exists()  # it waits
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    assert second.communicate(timeout=60)[0] == "complete\n"
    assert len(log.read_text().splitlines()) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log", "made"]


def test_an_error_leaves_nothing_and_is_raised(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise RuntimeError("no compiler")

    with pytest.raises(RuntimeError, match="no compiler"):
        made_once(tmp_path / "made", fail)
    assert list(tmp_path.iterdir()) == []
    made_once(tmp_path / "made", lambda folder: (folder / "data").touch())
    assert (tmp_path / "made" / "data").exists()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask and wait for moments only."""
    monkeypatch.setattr(once, "ASK_AFTER_S", 0.1)
    monkeypatch.setattr(once, "HEARTBEAT_S", 0.05)


def other_maker(target: Path, **changes: object) -> tuple[Holder, Path]:
    """Leave what a maker on another machine has half made, with its lock."""
    holder = dataclasses.replace(Holder.present(), **{"host": "node17", "boot": "b", **changes})
    target.with_name(f"{target.name}.lock").write_bytes(holder.to_bytes())
    part = target.with_name(f"{target.name}.{holder.token}.part")
    (part / "made").mkdir(parents=True)
    (part / "maker.json").write_bytes(holder.to_bytes())
    return holder, part


def touch(folder: Path) -> None:
    (folder / "data").write_text("here")


def test_works_where_files_cannot_be_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert (made_once(tmp_path / "made", touch) / "data").read_text() == "here"
    assert [p.name for p in tmp_path.iterdir()] == ["made"]


def test_who_stops_waiting_spoils_nothing(tmp_path: Path) -> None:
    """Both make it, each in a folder of its own; the first to finish wins."""

    def slow(folder: Path) -> None:
        (folder / "half").write_text("slow")
        made_once(tmp_path / "made", touch, patience_s=0.0)  # somebody else, meanwhile
        assert (folder / "half").read_text() == "slow"
        (folder / "data").write_text("slow")

    assert (made_once(tmp_path / "made", slow) / "data").read_text() == "here"
    assert [p.name for p in tmp_path.iterdir()] == ["made"]


def test_what_a_living_maker_elsewhere_has_half_made_stays(tmp_path: Path, quick: None, caplog) -> None:
    """It touches its folder, so the others wait; when it is silent for long they make it, beside it."""
    caplog.set_level("INFO")
    target = tmp_path / "made"
    _, part = other_maker(target)
    beating, began = threading.Event(), time.monotonic()

    def beat() -> None:
        while not beating.wait(0.02) and time.monotonic() - began < 1.0:
            os.utime(part / "maker.json")

    thread = threading.Thread(target=beat)
    thread.start()
    made_once(target, touch, patience_s=0.5)
    thread.join()
    assert time.monotonic() - began > 1.4
    assert part.is_dir(), "it may live"
    told = [record.getMessage() for record in caplog.records]
    assert any("waiting for" in text and "on node17" in text for text in told)
    assert any("no sign of life of process" in text and "making it here" in text for text in told)


def test_waiting_can_be_stopped(tmp_path: Path) -> None:
    other_maker(tmp_path / "made")
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) == 3

    with pytest.raises(InterruptedRunError, match=r"is still being made by process \d+ on node17"):
        made_once(tmp_path / "made", touch, stop=stop)


@pytest.mark.parametrize("over", [True, False])
def test_a_maker_elsewhere_whose_job_is_over_is_replaced(
    tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch, over: bool
) -> None:
    """At once when that is known; what it has left is removed."""
    _, part = other_maker(tmp_path / "made", job="4711", scheduler="slurm")
    monkeypatch.setattr(once, "job_state", lambda job: JobState(over, ""))
    if over:
        made_once(tmp_path / "made", touch)
        assert [p.name for p in tmp_path.iterdir()] == ["made"]
    else:
        count = iter(range(10))
        with pytest.raises(InterruptedRunError):
            made_once(tmp_path / "made", touch, stop=lambda: next(count) == 9)
        assert part.is_dir()


def test_what_was_told_of_one_job_is_not_believed_of_another(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the place of the maker whose job is over has been taken by a living one."""
    seen = once._SignsOfLife()
    monkeypatch.setattr(once, "job_state", lambda job: JobState(job.id == "1", ""))
    time.sleep(0.15)
    assert seen.ask(Job("slurm", "1")).over is True
    assert not seen.ask(Job("slurm", "2")).over


def test_folders_that_nobody_is_known_to_make_are_removed_after_a_day(tmp_path: Path) -> None:
    """As earlier versions left them. Their lock file, which stayed for ever, is in nobody's way."""
    old, new = tmp_path / "made.1234.part", tmp_path / "made.5678.part"
    for part in (old, new):
        part.mkdir()
        (part / "half").write_text("x")
    (tmp_path / "made.lock").touch()
    long_ago = time.time() - 2 * 24 * 3600
    for path in (old / "half", old):
        os.utime(path, (long_ago, long_ago))
    made_once(tmp_path / "made", touch)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["made", "made.5678.part"]


def test_a_stopped_maker_does_not_hold_the_others_up_for_ever(tmp_path: Path) -> None:
    target, log = tmp_path / "made", tmp_path / "log"
    first = start(target, log, 60)
    wait_for(log)
    os.kill(first.pid, signal.SIGSTOP)
    try:
        assert (made_once(target, touch, patience_s=0.3) / "data").read_text() == "here"
        assert len(list(tmp_path.glob("made.*.part"))) == 1
    finally:
        first.kill()
        first.communicate()
