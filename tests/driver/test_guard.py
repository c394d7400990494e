"""The process that ends a rank which gives no sign of life."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from campaigns import ROOT, environment

RANK = """
import sys, time
from driver.guard import Guard
guard = Guard(float(sys.argv[1]))
print("ready", guard._process.pid, flush=True)
end = time.monotonic() + float(sys.argv[2])
while time.monotonic() < end:
    guard.wait(float(sys.argv[1]))
    time.sleep(0.05)
"""


def start(patience_s: float, beats_for_s: float) -> tuple[subprocess.Popen[str], int]:
    """A process with a guard, that gives signs of life for a while; the guard's number."""
    process = subprocess.Popen(
        [sys.executable, "-c", RANK, str(patience_s), str(beats_for_s)],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    return process, int(process.stdout.readline().split()[1])


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return True


def wait_until_gone(pid: int) -> None:
    deadline = time.monotonic() + 30
    while not gone(pid):
        assert time.monotonic() < deadline, "the guard is still there"
        time.sleep(0.05)


def test_a_stopped_process_is_killed():
    process, guard = start(2.0, 60.0)
    os.kill(process.pid, signal.SIGSTOP)
    started = time.monotonic()
    assert process.wait(30) == -signal.SIGKILL
    assert time.monotonic() - started > 1.0
    assert process.stderr is not None and "gives no sign of life and is killed" in process.stderr.read()
    wait_until_gone(guard)


@pytest.mark.parametrize("ends", ["by itself", "killed"])
def test_the_guard_goes_with_its_process(ends):
    process, guard = start(60.0, 1.0 if ends == "by itself" else 60.0)
    if ends == "killed":
        process.kill()
    assert process.wait(30) == (0 if ends == "by itself" else -signal.SIGKILL)
    wait_until_gone(guard)


def test_signals_meant_for_the_ranks_leave_the_guard_alone():
    process, guard = start(60.0, 60.0)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP):
        os.kill(guard, number)
    time.sleep(0.5)
    assert not gone(guard)
    process.kill()
    process.wait(30)
    wait_until_gone(guard)


def test_a_job_that_is_suspended_as_a_whole_goes_on():
    """The guard counts its own ticks, so time that it has slept through with its rank does not count."""
    process, guard = start(6.0, 10.0)
    for pid in (guard, process.pid):
        os.kill(pid, signal.SIGSTOP)
    time.sleep(8.0)
    for pid in (process.pid, guard):
        os.kill(pid, signal.SIGCONT)
    assert process.wait(60) == 0
