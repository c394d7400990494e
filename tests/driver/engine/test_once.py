"""One process makes, the others wait; killed makers leave nothing behind that harms."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from driver.engine.once import made_once

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
    assert sorted(p.name for p in target.parent.iterdir()) == ["made", "made.lock"]


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
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log", "made", "made.lock"]


def test_an_error_leaves_nothing_and_is_raised(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").write_text("x")
        raise RuntimeError("no compiler")

    with pytest.raises(RuntimeError, match="no compiler"):
        made_once(tmp_path / "made", fail)
    assert [p.name for p in tmp_path.iterdir()] == ["made.lock"]
    made_once(tmp_path / "made", lambda folder: (folder / "data").touch())
    assert (tmp_path / "made" / "data").exists()


def test_works_where_files_cannot_be_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)

    def fast(folder: Path) -> None:
        (folder / "data").write_text("fast")

    def slow(folder: Path) -> None:
        made_once(tmp_path / "made", fast)  # somebody else, meanwhile
        (folder / "data").write_text("slow")

    assert (made_once(tmp_path / "made", slow) / "data").read_text() == "fast"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["made", "made.lock"]
