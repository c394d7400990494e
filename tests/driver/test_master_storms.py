"""The real master and scheduler among workers that fail, refuse, leave and die at random: everything is settled in the
end.

No archive and no time: workers answer at once.
"""

from __future__ import annotations

import random
from collections import Counter, deque

import pytest

from driver.archive.records import TaskFailure, TaskKey, TaskResult
from driver.batch_size import BatchSize
from driver.errors import UsageError
from driver.interrupts import Interrupts
from driver.master import Master
from driver.messages import Gone, Hello, LeaseEnd, LeaseFailure, Leaving, Outcome, Refusal, ToMaster, ToWorker, Work
from driver.scheduler import Scheduler
from driver.settings import ExecutionSettings
from driver.tasks import TaskSpec

SIZE = BatchSize(4, 100)
MOST_SILENT_TURNS = 3000


class StallError(Exception):
    """Nothing is under way, and the master waits."""


def campaign(rng: random.Random) -> list[TaskSpec]:
    specs = []
    for index in range(rng.choice((1, 2, 5, 12))):
        relax = TaskKey(f"M{index}", "m", "relax")
        specs += [TaskSpec(relax, SIZE, 4.0), TaskSpec(TaskKey(f"M{index}", "m", "displace"), SIZE, 8.0, (relax,))]
        before = relax
        for segment in range(3):
            key = TaskKey(f"M{index}", "m", "dynamics", segment)
            specs.append(TaskSpec(key, SIZE, 80.0, (before,)))
            before = key
    return specs


class Storm:
    """Workers in memory with bad luck of several kinds, each kind in some of the campaigns."""

    survives_deaths = True

    def __init__(self, rng: random.Random, specs: list[TaskSpec]) -> None:
        self._rng = rng
        self.workers = tuple(range(1, rng.choice((1, 2, 3, 4, 8)) + 1))
        self._gone: set[int] = set()
        self._silent = 0
        self._events: deque[tuple[int, ToMaster]] = deque()
        refusing, dying, broken = (rng.choice((0.0, 0.0, 0.3)) for _ in range(3))
        self._broken = {worker for worker in self.workers if rng.random() < broken}
        self._bad = {spec.key for spec in specs if rng.random() < rng.choice((0.0, 0.1))}
        self._luck = {
            kind: rng.choice((0.0, 0.05)) for kind in ("dies", "defect", "leaves", "lease fails", "fails", "partly")
        }
        for worker in rng.sample(self.workers, len(self.workers)):
            if rng.random() < refusing:
                self._say(worker, Refusal("no GPU", "node"))
            elif rng.random() < dying:
                self._say(worker, Gone("its process has died"))
            else:
                self._say(worker, Hello("node", worker, "cpu", BatchSize(rng.choice((4, 8, 40)))))

    def _say(self, worker: int, message: ToMaster) -> None:
        # Workers overtake each other, but no message of a worker overtakes another of the same.
        last = max((i for i, (who, _) in enumerate(self._events) if who == worker), default=-1)
        self._events.insert(self._rng.randint(last + 1, len(self._events)), (worker, message))

    def _happens(self, kind: str) -> bool:
        return self._rng.random() < self._luck[kind]

    def send(self, worker: int, message: ToWorker) -> None:
        if isinstance(message, Work) and worker not in self._gone:
            self._work(worker, message)

    def _work(self, worker: int, work: Work) -> None:
        for kind, farewell in (("dies", Gone("died")), ("defect", Refusal("ECC")), ("leaves", Leaving("SIGTERM"))):
            if self._happens(kind):
                self._gone.add(worker)
                return self._say(worker, farewell)
        if self._happens("lease fails"):
            return self._say(worker, LeaseFailure(work.lease_id, "E", "m", "t", 0.1, self._rng.random() < 0.5, SIZE))
        for task in work.inputs:
            if self._happens("partly"):
                break
            fails = task.key in self._bad or worker in self._broken or self._happens("fails")
            outcome = TaskFailure(task.key, "E", "m", "t") if fails else TaskResult(task.key, {}, {})
            self._say(worker, Outcome(work.lease_id, outcome, 0.1))
        return self._say(worker, LeaseEnd(work.lease_id, SIZE))

    def receive(self, timeout_s: float) -> tuple[int, ToMaster] | None:
        if self._events:
            self._silent = 0
            return self._events.popleft()
        self._silent += 1
        if self._silent > MOST_SILENT_TURNS:
            raise StallError
        return None

    def ready(self) -> bool:
        return bool(self._events)

    def abandon(self, worker: int) -> None:
        self._gone.add(worker)

    def close(self) -> None:
        """Nothing is under way."""


class Ledger:
    """An archive that only counts."""

    view = None

    def __init__(self) -> None:
        self.done: Counter[TaskKey] = Counter()
        self.given_up: set[TaskKey] = set()

    def commit(self, attempts) -> None:
        for attempt in attempts:
            if isinstance(attempt.outcome, TaskResult):
                self.done[attempt.key] += 1
            elif attempt.quarantined:
                self.given_up.add(attempt.key)

    def note_lost_worker(self, worker) -> None:
        """Nothing is kept."""


class Silent:
    def update(self, counts, remaining_cost, workers) -> None:
        """Nothing is shown."""

    def failure(self, key, message, *, quarantined) -> None:
        """Nothing is shown."""


@pytest.mark.parametrize("block", range(10))
def test_every_campaign_comes_to_an_end(block, monkeypatch):
    from types import SimpleNamespace

    monkeypatch.setattr("driver.master.inputs_of", lambda key, view: SimpleNamespace(key=key))
    for seed in range(60 * block, 60 * block + 60):
        rng = random.Random(seed)
        specs = campaign(rng)
        storm, ledger = Storm(rng, specs), Ledger()
        scheduler = Scheduler(
            specs,
            max_attempts=rng.choice((1, 2, 3)),
            leases_in_flight=rng.choice((1, 2)),
            workers_expected=len(storm.workers),
        )
        settings = ExecutionSettings(commit_every_s=0.001)
        master = Master(scheduler, storm, ledger, Interrupts(()), Silent(), settings)
        try:
            summary = master.run()
        except UsageError:  # all have refused
            continue
        counts = summary.counts
        assert counts.left == 0 or summary.interrupted_by == "no worker left", seed
        assert (counts.done, counts.quarantined) == (len(ledger.done), len(ledger.given_up)), seed
        assert set(ledger.done.values()) <= {1}, seed
