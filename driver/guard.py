"""A small process beside each rank that ends it when it gives no sign of life. It comes first: no imports of Latdyn.

A stopped rank (SIGSTOP, a debugger, a frozen container) can do nothing about it itself, and MPI libraries and launchers
wait for it for ever. A dead one they notice. The guard turns the first into the second, wherever the rank is: in
MPI_Init, computing, or leaving.

The guard counts its own ticks, not the clock's time: a job that is suspended as a whole, guards included, goes on where
it was.
"""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

_LAUNCHED = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK", "PMI_RANK", "PALS_RANKID", "MPI_LOCALNRANKS")
"""Environment variables of which MPI launchers set at least one."""

_PROGRAM = """
import os, select, signal, struct, sys

rank, left = int(sys.argv[1]), float(sys.argv[2])
while left > 0:
    if select.select([0], [], [], 0.5)[0]:
        words = os.read(0, 65536)
        if not words:
            sys.exit()
        left = struct.unpack("d", words[-8:])[0]
    else:
        left -= 0.5
os.write(2, b"latdyn: process %d gives no sign of life and is killed; run the same command again\\n" % rank)
os.kill(rank, signal.SIGKILL)
"""


def launched_as_rank() -> bool:
    """Whether an MPI launcher started this process."""
    return any(name in os.environ for name in _LAUNCHED)


def ranks_beside() -> list[int]:
    """Return the other processes that the same launcher has started on this machine with the same command."""
    here = Path("/proc/self")
    found = []
    with contextlib.suppress(OSError):
        command = (here / "cmdline").read_bytes()
        for process in Path("/proc").iterdir():
            if process.name.isdigit() and int(process.name) != os.getpid():
                with contextlib.suppress(OSError):
                    parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
                    if parent == os.getppid() and (process / "cmdline").read_bytes() == command:
                        found.append(int(process.name))
    return found


def start_of(process: int) -> str:
    """When a process of this machine was started, in ticks since boot; "" where that cannot be told."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def running_system() -> str:
    """What tells this running system, and this set of process numbers in it, from others."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip() + str(Path("/proc/self/ns/pid").readlink())
    return ""


def is_alive(process: int) -> bool:
    """Whether a process of this machine is there, stopped or not, and no zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


class Guard:
    """Ends this process by SIGKILL unless it is told, time and again, to wait.

    Parameters
    ----------
    wait_s : float
        How long it waits for the first call of `wait`. It takes up to half a second longer.
    """

    def __init__(self, wait_s: float) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        arguments = [sys.executable, "-I", "-S", "-c", _PROGRAM, str(os.getpid()), str(wait_s)]
        with contextlib.suppress(OSError):  # no guard, then: a site may forbid child processes
            self._process = subprocess.Popen(
                arguments,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                preexec_fn=_ignore_signals,  # noqa: PLW1509  # there are no other threads yet
            )
            assert self._process.stdin is not None
            self._pipe = self._process.stdin.fileno()
            os.set_blocking(self._pipe, False)

    def wait(self, seconds: float) -> None:
        """Give a sign of life: the guard waits so long for the next one."""
        if self._process is not None:
            with contextlib.suppress(OSError):  # it is gone, or stopped itself
                os.write(self._pipe, struct.pack("d", seconds))

    def dismiss(self) -> None:
        """End the guard, so that it watches no more."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
            self._process.wait()
            self._process = None


def _ignore_signals() -> None:
    """In the guard, before it begins: what is sent to a whole job is meant for its ranks."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}:
        with contextlib.suppress(OSError):
            signal.signal(number, signal.SIG_IGN)
