"""One rank of a campaign is killed or stopped in a given phase, under a given launcher: does the run end, and with
what?

Serves tests/mpi, tests/slurm and benchmarks/faults.py. Made-up tasks (toy_mpi.py), real launchers.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from campaigns import ROOT, environment, mpirun
from slurm_cluster import SlurmCluster
from toy_mpi import PHASES

from driver.archive.reader import open_archive
from driver.archive.records import ArchiveError, TaskKey
from driver.archive.verify import verify

RANKS = 4
MATERIALS, SEGMENTS_AND_STAGES = 4, 5
PATIENCE_S = 6.0
MARGIN_S = 15.0
"""A run must have ended so long after the patience."""
START_S = 120.0
SIGNALS = (signal.SIGKILL, signal.SIGSTOP)
SCRIPT = ROOT / "tests" / "helpers" / "toy_mpi.py"


@dataclass(frozen=True)
class Case:
    """A signal, the rank that gets it, and when."""

    signal: signal.Signals
    rank: int
    phase: str

    def __str__(self) -> str:
        return f"{self.signal.name} of {'the master' if self.rank == 0 else 'a worker'}, {self.phase}"


@dataclass(frozen=True)
class Launcher:
    """How ranks are started: the words before the program, and its environment."""

    name: str
    words: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Ending:
    """How a run ended.

    Attributes
    ----------
    seconds : float
        From the signal to the end.
    code : int
        Of the launcher; -1 if the run had not ended by then and was killed.
    all_done : bool
    lost : int
        Results that had been committed and are missing or damaged.
    output : str
    """

    seconds: float
    code: int
    all_done: bool
    lost: int
    output: str

    @property
    def hung(self) -> bool:
        """It did not end by itself in time."""
        return self.code == -1

    @property
    def good(self) -> bool:
        """Nothing lost, and either all done or a code with which jobs/slurm.sbatch queues the job again."""
        return not self.hung and self.lost == 0 and (self.all_done or self.code == 75 or self.code >= 128)


def slurm_launchers(cluster: SlurmCluster, mpich: Mapping[str, str]) -> list[Launcher]:
    """`srun` with Open MPI and, where there is one, with MPICH, on one node of a local Slurm."""
    words = ("srun", "-N1", f"-n{RANKS}", "--kill-on-bad-exit=0")
    found = [Launcher("srun --mpi=pmix", (*words, "--mpi=pmix"), cluster.environment)]
    if mpich:
        found.append(Launcher("srun --mpi=pmi2", (*words, "--mpi=pmi2"), {**cluster.environment, **mpich}))
    return found


ULFM = Launcher("mpirun --with-ft ulfm", mpirun(RANKS, "--with-ft", "ulfm"))
PLAIN = Launcher("mpirun", mpirun(RANKS))


def cases() -> list[Case]:
    """All of them. A master is never idle, and has no lease that could end."""
    found = []
    for number in SIGNALS:
        for rank in (0, 1):
            phases = [p for p in PHASES if rank or p not in ("idle", "after the last result")]
            found += [Case(number, rank, phase) for phase in phases]
    return found


def try_case(case: Case, launcher: Launcher, folder: Path) -> Ending:
    """Start a campaign, send the signal when the rank comes to the phase, and see how it ends."""
    archive = folder / "archive.h5"
    few = case.phase == "idle"
    seconds = {"idle": "0.3", "draining": "1.0"}.get(case.phase, "0.1")
    options = [str(archive), "--seconds", seconds, "--materials", "1" if few else str(MATERIALS)]
    options += ["--patience", str(PATIENCE_S), "--hold", f"{case.rank}:{case.phase}"]
    process = subprocess.Popen(
        [*launcher.words, sys.executable, str(SCRIPT), *options],
        env=environment() | dict(launcher.environment),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    watcher = _Watcher(process)
    try:
        pids = watcher.wait_for_ranks()
        if case.phase == "draining":
            if case.rank:
                watcher.wait_for(rf"rank {case.rank} runs")
            else:
                _wait(lambda: len(_done(archive)) >= 1, process)
            os.kill(pids[0], signal.SIGTERM)
        watcher.wait_for(rf"rank {case.rank} holds {case.phase}")
        before = _done(archive)
        os.kill(pids[case.rank], case.signal)
        began = time.monotonic()
        code = _end(process, PATIENCE_S + MARGIN_S)
        seconds = time.monotonic() - began
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        for pid in watcher.pids.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    watcher.join()
    after = _done(archive)
    lost = len(before - after) + (len(verify(archive)) if archive.exists() else 0)
    all_done = len(after) == SEGMENTS_AND_STAGES * (1 if few else MATERIALS)
    return Ending(seconds, code, all_done, lost, watcher.output)


class _Watcher:
    """Reads what the ranks print."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.output = ""
        self.pids: dict[int, int] = {}
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self.output += line
            if match := re.match(r"rank (\d+) is (\d+)", line):
                self.pids[int(match[1])] = int(match[2])

    def wait_for_ranks(self) -> dict[int, int]:
        _wait(lambda: len(self.pids) == RANKS, self._process, lambda: self.output)
        return self.pids

    def wait_for(self, text: str) -> None:
        _wait(lambda: re.search(text, self.output) is not None, self._process, lambda: self.output)

    def join(self) -> None:
        self._thread.join(5)


def _wait(condition, process: subprocess.Popen[str], told=lambda: "") -> None:
    deadline = time.monotonic() + START_S
    while not condition():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the campaign ended, or stood still, before the fault: {told()}")
        time.sleep(0.02)


def _end(process: subprocess.Popen[str], timeout_s: float) -> int:
    try:
        code = process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return -1
    return code if code >= 0 else 128 - code


def _done(archive: Path) -> set[TaskKey]:
    try:
        with open_archive(archive) as view:
            return {key for key, state in view.task_states().items() if state.status == "done"}
    except ArchiveError:
        return set()
