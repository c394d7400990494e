"""Work in a child process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from driver.engine.child import ChildError, call
from driver.errors import InterruptedRunError, UsageError

ROOT = Path(__file__).resolve().parents[3]

JOBS = """
import os, signal, subprocess, sys, time
from driver.errors import UsageError

def double(number):
    print("not the result")
    return {"twice": 2 * number, "variable": os.environ.get("TEST_VARIABLE"), "pid": os.getpid()}

def refuse(text):
    raise UsageError(text)

def fail(text):
    raise RuntimeError("first line\\nsecond line")

def die(number):
    print("last words", file=sys.stderr)
    os.kill(os.getpid(), number)

def leave(code):
    os._exit(code)

def wait(path):
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        os.kill(os.getpid(), number)
    compiler = subprocess.Popen(["sleep", "300"])
    with open(path, "w") as stream:
        stream.write(f"{os.getpid()} {compiler.pid}\\n")
    time.sleep(300)
"""


@pytest.fixture(autouse=True)
def _jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that only this process's search path leads to."""
    (tmp_path / "jobs_of_a_test.py").write_text(JOBS)
    monkeypatch.syspath_prepend(str(tmp_path))


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


def wait_until(condition: object, timeout_s: float = 60.0) -> None:
    end = time.monotonic() + timeout_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end
        time.sleep(0.05)


def test_the_result_comes_back() -> None:
    result = call("jobs_of_a_test:double", 21, environment={"TEST_VARIABLE": "x"})
    assert (result["twice"], result["variable"]) == (42, "x")
    assert result["pid"] != os.getpid()


def test_errors_come_back() -> None:
    with pytest.raises(UsageError, match=r"^not like this\nTraceback"):
        call("jobs_of_a_test:refuse", "not like this")
    with pytest.raises(ChildError, match=r"^first line second line\nTraceback") as caught:
        call("jobs_of_a_test:fail", None)
    assert "in fail" in caught.value.__notes__[0]
    with pytest.raises(ChildError, match=r"^the process ended by SIGSEGV: last words$"):
        call("jobs_of_a_test:die", int(signal.SIGSEGV))
    with pytest.raises(ChildError, match=r"^the process ended with code 3$"):
        call("jobs_of_a_test:leave", 3)


def test_it_is_left_on_request_with_what_it_has_started(tmp_path: Path) -> None:
    """Signals that a launcher sends to all processes do not end it before."""
    pids = tmp_path / "pids"
    asked = []

    def stop() -> bool:
        if pids.exists() and pids.read_text().endswith("\n"):
            asked.append(time.monotonic())
        return len(asked) > 3

    with pytest.raises(InterruptedRunError):
        call("jobs_of_a_test:wait", str(pids), stop=stop)
    assert time.monotonic() - asked[-1] < 5.0
    wait_until(lambda: not any(alive(int(pid)) for pid in pids.read_text().split()))


def test_it_ends_with_its_parent_however_that_ends(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); from driver.engine.child import call; "
    parent = subprocess.Popen(
        [sys.executable, "-c", code + f"call('jobs_of_a_test:wait', {str(pids)!r})"], cwd=ROOT, env={**os.environ}
    )
    wait_until(lambda: pids.exists() and pids.read_text().endswith("\n"))
    child, sleeper = map(int, pids.read_text().split())
    try:
        assert alive(child)
        parent.kill()
        parent.wait()
        wait_until(lambda: not alive(child))
    finally:
        os.kill(sleeper, signal.SIGKILL)
