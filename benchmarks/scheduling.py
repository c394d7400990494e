"""Does the master keep up with its workers?

python -m benchmarks.scheduling [--json FILE]
python -m benchmarks.scheduling --quick --json FILE     # in less than three minutes

messages_per_s    The real `Master` and `Scheduler` with workers in memory that compute nothing, and an archive that
                  keeps nothing: messages (an outcome and an end of lease for each task) that it deals with per second.
us_per_decision   The real `Scheduler`: a worker gets free; how long until `assign` has handed out its next lease. The
                  slower of two situations: all others are busy and there is plenty to do, or half of them are idle
                  because there are fewer trajectories than workers.
busy_share        Real MPI workers on made-up tasks of 100 ms, under mpirun, with a real archive: share of the workers'
                  time between the first result and the last that is spent in tasks; also where each fsync takes 30 ms.

A size that takes too long is stopped, and its rate so far is taken.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from driver.archive.records import Structure, TaskKey, TaskResult
from driver.batch_size import BatchSize
from driver.interrupts import Interrupts
from driver.master import Master
from driver.messages import Hello, LeaseEnd, Outcome, ToMaster, ToWorker, Work
from driver.scheduler import Scheduler
from driver.settings import ExecutionSettings
from driver.tasks import Lease, TaskSpec

ROOT = Path(__file__).resolve().parents[1]
SIZE = BatchSize(4.0, 100.0)
"""Of a task, and what a worker takes: one task per lease, as with large crystals, which costs the master most."""
STRUCTURE = Structure(np.full(4, 17), np.zeros((4, 3)), np.eye(3))
MESSAGES_WORKERS = (16, 128, 256, 1024)
DECISION_WORKERS = (256, 4096, 16384)
MPI_WORKERS, TASK_S, SLOW_FSYNC_S = 16, 0.1, 0.03


@dataclass(frozen=True)
class Plan:
    """How much is done: least tasks and tasks per worker, limits per size, decisions, length of the campaigns."""

    tasks: int
    tasks_per_worker: int
    messages_limit_s: float
    decisions: int
    decisions_limit_s: float
    busy_s: float


FULL = Plan(
    tasks=12000, tasks_per_worker=24, messages_limit_s=30.0, decisions=3000, decisions_limit_s=20.0, busy_s=30.0
)
QUICK = Plan(tasks=6000, tasks_per_worker=12, messages_limit_s=6.0, decisions=600, decisions_limit_s=3.0, busy_s=20.0)


def campaign(tasks: int) -> list[TaskSpec]:
    """Return about so many tasks: relaxations, each with displacements and a segment of dynamics that wait for it."""
    specs = []
    for index in range(tasks // 3):
        relax = TaskKey(f"M{index}", "m", "relax")
        specs += [
            TaskSpec(relax, SIZE, 4.0),
            TaskSpec(TaskKey(f"M{index}", "m", "displace"), SIZE, 8.0, (relax,)),
            TaskSpec(TaskKey(f"M{index}", "m", "dynamics", 0), SIZE, 80.0, (relax,)),
        ]
    return specs


class EnoughError(Exception):
    """The time for a size is over."""


class InstantWorkers:
    """A transport to workers in memory: what is handed out is done at once, and reported in the order of its coming."""

    def __init__(self, workers: int, limit_s: float) -> None:
        self.workers = tuple(range(1, workers + 1))
        self.survives_deaths = True
        self.received = 0
        self._queue: deque[tuple[int, ToMaster]] = deque(
            (worker, Hello("node", worker, "cpu", SIZE)) for worker in self.workers
        )
        self._limit_s = limit_s
        self.began_s = self.ended_s = 0.0

    def send(self, worker: int, message: ToWorker) -> None:
        """Do the work that there is in a message."""
        if isinstance(message, Work):
            for task in message.inputs:
                self._queue.append((worker, Outcome(message.lease_id, TaskResult(task.key, {}, {}), 1.0)))
            self._queue.append((worker, LeaseEnd(message.lease_id, SIZE)))

    def receive(self, timeout_s: float) -> tuple[int, ToMaster] | None:
        """Return the next message.

        Raises
        ------
        EnoughError
            Once the time is over.
        """
        self.ended_s = time.perf_counter()
        if not self.received:
            self.began_s = self.ended_s
        if self.ended_s - self.began_s > self._limit_s:
            raise EnoughError
        if not self._queue:
            return None
        self.received += 1
        return self._queue.popleft()

    def ready(self) -> bool:
        """Whether there is a message."""
        return bool(self._queue)

    def abandon(self, worker: int) -> None:
        """Nobody is lost here."""

    def close(self) -> None:
        """Nothing is under way."""


class NullArchive:
    """Writer and view of an archive that keeps nothing."""

    def __init__(self) -> None:
        self.view = self
        self.committed = 0

    def commit(self, attempts: Sequence[Any]) -> None:
        """Count."""
        self.committed += len(attempts)

    def structure(self, material: str) -> Structure:
        """Return the same for all."""
        return STRUCTURE

    def relaxed(self, material: str, model: str) -> Structure:
        """Return the same for all."""
        return STRUCTURE


class Silent:
    """Progress that nobody looks at."""

    def update(self, *_: object) -> None:
        """Say nothing."""

    def failure(self, *_: object, **__: object) -> None:
        """Say nothing."""


def messages_per_s(workers: int, plan: Plan) -> float:
    """Return the messages per second that the master deals with."""
    specs = campaign(max(plan.tasks, plan.tasks_per_worker * workers))
    scheduler = Scheduler(specs, workers_expected=workers)
    transport = InstantWorkers(workers, plan.messages_limit_s)
    archive = NullArchive()
    settings = ExecutionSettings()
    master: Any = Master(scheduler, transport, archive, Interrupts(), Silent(), settings, host="node")  # type: ignore[arg-type]
    try:
        master.run()
    except EnoughError:
        pass
    else:
        if archive.committed != len(specs):
            raise RuntimeError(f"{archive.committed} of {len(specs)} tasks were committed")
    return transport.received / (transport.ended_s - transport.began_s)


def us_per_decision(workers: int, plan: Plan) -> dict[str, float]:
    """Return the median microseconds of a decision in each situation.

    Returns
    -------
    dict
        "all busy": there is more than enough to do, and a worker that gets free takes something. "half idle": there are
        half as many trajectories as workers, so that a worker that gets free goes on with what it has made ready.
        "first leases": the mean over all leases of the beginning.
    """
    busy = Scheduler(campaign(6 * workers + 2 * plan.decisions), workers_expected=workers)
    idle = Scheduler(trajectories(max(1, workers // 2), 2 + 4 * plan.decisions // workers), workers_expected=workers)
    found = {}
    for name, scheduler in (("all busy", busy), ("half idle", idle)):
        for worker in range(1, workers + 1):
            scheduler.add_worker(worker, SIZE)
        began = time.perf_counter()
        leases: deque[Lease] = deque()
        while handed := scheduler.assign():
            leases.extend(handed)
        found.setdefault("first leases", 1e6 * (time.perf_counter() - began) / len(leases))
        found[name] = statistics.median(decisions_us(scheduler, leases, plan))
    return found


def decisions_us(scheduler: Scheduler, leases: deque[Lease], plan: Plan) -> list[float]:
    """Return the microseconds of `assign` per lease that it hands out, while leases end one after the other."""
    taken = []
    end = time.perf_counter() + plan.decisions_limit_s
    while len(taken) < plan.decisions and leases and time.perf_counter() < end:
        lease = leases.popleft()
        for key in lease.tasks:
            scheduler.finish(key)
        scheduler.end_lease(lease.id, SIZE)
        began = time.perf_counter()
        handed = scheduler.assign()
        if handed:
            taken.append(1e6 * (time.perf_counter() - began) / len(handed))
            leases.extend(handed)
    return taken


def trajectories(chains: int, segments: int) -> list[TaskSpec]:
    """Return trajectories whose segments wait for each other."""
    specs = []
    for index in range(chains):
        before: tuple[TaskKey, ...] = ()
        for segment in range(segments):
            key = TaskKey(f"M{index}", "m", "dynamics", segment)
            specs.append(TaskSpec(key, SIZE, 80.0, before))
            before = (key,)
    return specs


def busy_share(workers: int, busy_s: float, fsync_s: float) -> float:
    """Return the share of the workers' time, between the first result and the last, that is spent in tasks."""
    tasks = round(workers * busy_s / TASK_S)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root = ["--allow-run-as-root"] if os.geteuid() == 0 else []
        command = [
            str(Path(sys.executable).parent / "mpirun"),
            *("--with-ft", "ulfm", "--oversubscribe", "--bind-to", "none", *root, "-n", str(workers + 1)),
            *(sys.executable, "-m", "benchmarks.scheduling_ranks", str(folder), str(TASK_S), str(fsync_s)),
            *(str(folder / "archive.h5"), "--materials", str(max(1, tasks // 5)), "--capacity", "4"),
        ]
        path = os.pathsep.join([str(ROOT), str(ROOT / "tests" / "helpers")])
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
        run = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            timeout=60.0 + 20.0 * busy_s,
            check=False,
        )
        if run.returncode != 0:
            raise RuntimeError(
                f"the campaign ended with exit code {run.returncode}: {(run.stderr or run.stdout)[-500:]}"
            )
        intervals = [json.loads(line) for file in folder.glob("*.jsonl") for line in file.read_text().splitlines()]
    return share(intervals, workers)


def share(intervals: Sequence[tuple[float, float]], workers: int) -> float:
    """Return the share of time spent in tasks, given the beginning and the end of each, in seconds."""
    first, last = min(end for _, end in intervals), max(end for _, end in intervals)
    busy = sum(max(0.0, end - max(begin, first)) for begin, end in intervals)
    return busy / (workers * (last - first))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure everything, print it, and write it down."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="less than three minutes")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--workers-limit", type=int, default=10**9, help="leave out larger numbers of workers")
    parser.add_argument("--busy-s", type=float, help="about how long each campaign under mpirun takes")
    options = parser.parse_args(arguments)
    plan = QUICK if options.quick else FULL
    found: dict[str, Any] = {"messages_per_s": {}, "us_per_decision": {}, "us_by_situation": {}, "busy_share": {}}

    def tell(text: str) -> None:
        print(text, flush=True)
        if options.json:
            options.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")

    for workers in (w for w in MESSAGES_WORKERS if w <= options.workers_limit):
        found["messages_per_s"][str(workers)] = rate = messages_per_s(workers, plan)
        tell(f"{workers:>6} workers: {rate:>9.0f} messages/s")
    for workers in (w for w in DECISION_WORKERS if w <= options.workers_limit):
        situations = us_per_decision(workers, plan)
        found["us_per_decision"][str(workers)] = max(situations["all busy"], situations["half idle"])
        found["us_by_situation"][str(workers)] = situations
        told = ", ".join(f"{us:.1f} ({name})" for name, us in situations.items())
        tell(f"{workers:>6} workers: us per decision: {told}")
    for name, fsync_s in (("fast_fsync", 0.0), ("slow_fsync", SLOW_FSYNC_S)):
        workers = min(MPI_WORKERS, options.workers_limit)
        found["busy_share"][name] = busy = busy_share(workers, options.busy_s or plan.busy_s, fsync_s)
        slow = f", each fsync {1e3 * fsync_s:.0f} ms longer" if fsync_s else ""
        tell(f"{workers:>6} workers under mpirun: busy {busy:.2f} of the time{slow}")


if __name__ == "__main__":
    main()
