"""Which task next, for whom: a pure state machine. Events in, leases out; no I/O, no clock, no MPI.

Longest first: a task's priority is the cost of its trajectory that is still to be done, so the chains that would end
last start first. A worker stays with its model while that model has work. Leases shrink as the work runs out, so that
all workers end at about the same time. A failed lease is split until the culprit stands alone, and a task that failed
is tried again by another worker. A decision costs O(log n) in the number of tasks and nothing in the number of workers:
those with a free place wait in queues.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field

from driver.archive.records import TaskKey, TaskState
from driver.batch_size import BatchSize
from driver.ready_tasks import ReadyTasks
from driver.tasks import Counts, Lease, TaskSpec, dependents_and_costs
from driver.worker_queues import WorkerQueues

SHORT_S = 1.0
"""Work that a worker should have before it, in seconds, where leases are short."""
MOST_LEASES = 8
"""Leases that a worker holds for that at most."""


@dataclass
class _Worker:
    capacity: BatchSize
    measured: dict[str, BatchSize] = field(default_factory=dict)
    model: str = ""
    leases: set[int] = field(default_factory=set)
    held: bool = False


class Scheduler:
    """State of a campaign's tasks.

    Parameters
    ----------
    tasks : iterable of TaskSpec
        All tasks of the campaign, done ones included.
    states : mapping of TaskKey to TaskState
        What the archive knows.
    max_attempts : int
        Failed attempts after which a task is quarantined.
    leases_in_flight : int
        Leases that a worker holds at a time; two, so that it never waits for the master. More of them where all
        together take less than `SHORT_S`, as the master may be busy with a commit for so long.
    workers_expected : int
        Workers that will come; the first to arrive must not take the share of those still starting.
    """

    def __init__(
        self,
        tasks: Iterable[TaskSpec],
        states: Mapping[TaskKey, TaskState] | None = None,
        *,
        max_attempts: int = 3,
        leases_in_flight: int = 2,
        workers_expected: int = 1,
    ) -> None:
        states = states or {}
        self._specs = {spec.key: spec for spec in tasks}
        self._max_attempts = max_attempts
        self._leases_in_flight = leases_in_flight
        self._workers_expected = workers_expected
        self.workers_to_come = workers_expected
        self._attempts = {key: state.attempts for key, state in states.items()}
        self._deaths: dict[TaskKey, int] = {}
        self._done = {key for key, state in states.items() if state.status == "done" and key in self._specs}
        self._quarantined = {
            key for key, state in states.items() if state.status == "quarantined" and key in self._specs
        }
        self._blocked: set[TaskKey] = set()
        self._missing: dict[TaskKey, int] = {}
        self._workers: dict[int, _Worker] = {}
        self._leases: dict[int, Lease] = {}
        self._open: dict[int, set[TaskKey]] = {}
        self._lease_of_task: dict[TaskKey, int] = {}
        self._ids = itertools.count(1)
        self._draining = False
        self._apart: deque[tuple[TaskKey, ...]] = deque()
        self._failed_on: dict[TaskKey, set[int]] = defaultdict(set)
        self._places = max(leases_in_flight, MOST_LEASES)
        self._queues = WorkerQueues(self._places)
        self._dependents, chain_costs = dependents_and_costs(self._specs)
        self._ready = ReadyTasks(self._specs, chain_costs)
        self._left_cost = 0.0
        self._enqueue_initial()

    def _enqueue_initial(self) -> None:
        for key, spec in self._specs.items():
            self._missing[key] = sum(required not in self._done for required in spec.requires)
        for key in tuple(self._quarantined):
            for dependent in self._block(key):
                self._blocked.add(dependent)
        for key in self._specs:
            if self._settled(key):
                continue
            self._left_cost += self._specs[key].cost
            if self._missing[key] == 0:
                self._push(key)

    def add_worker(self, worker: int, capacity: BatchSize) -> None:
        """A worker is there; `capacity` is what it takes in a batch of a model before it has measured any of it."""
        self._workers[worker] = _Worker(capacity)
        self.expect(self.workers_to_come - 1)
        self._queues.put(worker, 0)

    def expect(self, workers: int) -> None:
        """So many workers are still to come, one of which may try again what has failed on those that are there."""
        self.workers_to_come = max(0, workers)
        self._queues.unpark_all()

    def lose_worker(self, worker: int) -> tuple[TaskKey, ...]:
        """A worker is gone: its unfinished tasks go back in the queue.

        Returns
        -------
        tuple of TaskKey
            The suspects: tasks of the lease that it was running. One alone may have killed the worker; it is out of
            the queue and the caller `fail`s it. Several are each queued as a lease of their own, with one death to
            their names that counts like a failed attempt.
        """
        leases = sorted(self._workers[worker].leases)
        suspects = self._unfinished(leases[0]) if leases else ()
        for lease_id in leases[1:]:
            self._return(lease_id)
        if leases:
            self._forget(leases[0])
        for key in suspects:
            self._deaths.setdefault(key, 0)
            if len(suspects) > 1:
                self._deaths[key] += 1
                self._set_apart((key,))
        self._queues.remove(worker)
        del self._workers[worker]
        self._queues.unpark_all()
        return suspects

    def remove_worker(self, worker: int) -> None:
        """A worker is taken out, through no fault of its tasks: the unfinished ones go back in the queue."""
        for lease_id in sorted(self._workers[worker].leases):
            self._return(lease_id)
        self._queues.remove(worker)
        del self._workers[worker]
        self._queues.unpark_all()

    def hold(self, worker: int, *, held: bool) -> None:
        """Hand a worker nothing more, or again."""
        self._workers[worker].held = held
        self._queue(worker)

    @property
    def workers(self) -> Set[int]:
        """Workers that are there."""
        return self._workers.keys()

    def report(self, key: TaskKey) -> None:
        """A task's outcome is known but not committed yet: `finish` or `fail` follows, its lease may end before."""
        self._close(key)

    def finish(self, key: TaskKey) -> None:
        """A task is committed. What waited for it alone becomes ready."""
        self._close(key)
        if key in self._done:
            return
        self._done.add(key)
        self._left_cost -= self._specs[key].cost
        for dependent in self._dependents[key]:
            self._missing[dependent] -= 1
            if self._missing[dependent] == 0 and not self._settled(dependent):
                self._push(dependent)

    def fail(self, key: TaskKey, *, permanent: bool = False, worker: int | None = None) -> bool:
        """An attempt at a task failed. Return whether the task is quarantined with it.

        If it is not, the next attempt is another worker's, where there is one.
        """
        self._close(key)
        quarantine = self.would_quarantine(key, permanent=permanent, worker=worker)
        self._attempts[key] = self._attempts.get(key, 0) + 1
        if worker is not None:
            self._failed_on[key].add(worker)
        if quarantine:
            self._quarantined.add(key)
            self._left_cost -= self._specs[key].cost
            self._block_dependents(key)
            return True
        if key in self._deaths or key in self._failed_on:
            self._set_apart((key,))
        else:
            self._push(key)
        return False

    def would_quarantine(self, key: TaskKey, *, permanent: bool = False, worker: int | None = None) -> bool:
        """Whether one more failed attempt, by `worker`, makes the task one to give up.

        Failures on one worker alone may be that worker's fault: while there are others, one of them must have failed
        too.
        """
        if permanent:
            return True
        if self.next_attempt(key) + self._deaths.get(key, 0) < self._max_attempts:
            return False
        others = worker is None or bool(self._failed_on.get(key, set()) - {worker}) or key in self._deaths
        return others or (len(self._workers.keys() - {worker}) == 0 and not self.workers_to_come)

    def next_attempt(self, key: TaskKey) -> int:
        """Number that the next (or running) attempt at a task has."""
        return self._attempts.get(key, 0) + 1

    def end_lease(self, lease_id: int, capacity: BatchSize | None = None) -> None:
        """A worker is through with a lease; what it did not report goes back in the queue.

        `capacity` is what the worker now takes in a batch of the lease's model; None: what it took before.
        """
        self._set_capacity(lease_id, capacity)
        self._return(lease_id)

    def split_lease(self, lease_id: int, capacity: BatchSize | None = None) -> TaskKey | None:
        """A lease failed as a whole. Queue its halves, or return the task if it stands alone (the culprit: `fail` it).

        Tasks of the lease that were already reported stay as they are; `capacity` as in `end_lease`.
        """
        self._set_capacity(lease_id, capacity)
        tasks = self._unfinished(lease_id)
        self._forget(lease_id)
        if len(tasks) == 1:
            return tasks[0]
        middle = (len(tasks) + 1) // 2
        for half in (tasks[:middle], tasks[middle:]):
            if half:
                self._set_apart(half)
        return None

    def drain(self) -> None:
        """Hand out nothing more."""
        self._draining = True

    def assign(
        self, left_s: float = math.inf, expected_s: Callable[[int, TaskKey], float] = lambda worker, key: 0.0
    ) -> list[Lease]:
        """Leases to send out now: round robin, so that no worker gets its second before the others have one.

        Parameters
        ----------
        left_s : float
            Time until the run must end.
        expected_s : callable, optional
            (worker, task) -> how long it should take; what would not be done in time is not handed out.
        """
        leases: list[Lease] = []
        for held in range(self._places):
            # A lease that waits behind another is for keeping workers busy, not for hoarding the last tasks.
            while self._anything_ready() and not (held and len(self._ready) < held * len(self._workers)):
                worker = self._queues.first(held)
                if worker is None:
                    break
                in_flight_s = self._in_flight_s(worker, expected_s)
                if held >= self._leases_in_flight and not 0.0 < in_flight_s < SHORT_S:
                    self._queues.remove(worker)  # until one of its leases ends
                    continue
                lease = self._next_lease(worker, left_s - in_flight_s, expected_s)
                if lease is None:
                    self._queues.park(worker, held)
                else:
                    leases.append(lease)
        return leases

    def _in_flight_s(self, worker: int, expected_s: Callable[[int, TaskKey], float]) -> float:
        return sum(expected_s(worker, key) for lease in self._workers[worker].leases for key in self._open[lease])

    def _anything_ready(self) -> bool:
        return not self._draining and (len(self._ready) > 0 or bool(self._apart))

    def _next_lease(self, worker: int, left_s: float, expected_s: Callable[[int, TaskKey], float]) -> Lease | None:
        for index, tasks in enumerate(self._apart):
            if self._may_try(worker, tasks):
                if sum(expected_s(worker, key) for key in tasks) > left_s:
                    return None
                del self._apart[index]
                return self._hand_out(worker, tasks)
        state = self._workers[worker]
        chosen = self._ready.choose(state.model)
        if chosen is None:
            return None
        capacity = state.measured.get(chosen[0], state.capacity)
        shares = self._leases_in_flight * max(len(self._workers), self._workers_expected)
        tasks = self._ready.take(*chosen, capacity, shares, left_s, lambda key: expected_s(worker, key))
        return self._hand_out(worker, tasks) if tasks else None

    def _may_try(self, worker: int, tasks: Sequence[TaskKey]) -> bool:
        """Whether a worker may have another go at tasks: not if they failed there and another worker could."""
        failed_on = self._failed_on.get(tasks[0])
        if len(tasks) > 1 or not failed_on or worker not in failed_on:
            return True
        return self._workers.keys() <= failed_on and not self.workers_to_come

    def _hand_out(self, worker: int, tasks: tuple[TaskKey, ...]) -> Lease:
        lease = Lease(next(self._ids), worker, tasks[0].model, tasks[0].stage, tasks)
        self._leases[lease.id] = lease
        self._open[lease.id] = set(tasks)
        self._lease_of_task.update(dict.fromkeys(tasks, lease.id))
        self._workers[worker].leases.add(lease.id)
        self._queue(worker)
        self._workers[worker].model = lease.model
        return lease

    @property
    def hungry(self) -> bool:
        """Whether a worker has no lease."""
        return self._queues.first(0) is not None or self.idle

    @property
    def idle(self) -> bool:
        """No lease is out."""
        return not self._leases

    @property
    def counts(self) -> Counts:
        """How many tasks stand where."""
        return Counts(len(self._specs), len(self._done), len(self._quarantined), len(self._blocked))

    def spec(self, key: TaskKey) -> TaskSpec:
        """The task of that key."""
        return self._specs[key]

    def remaining_cost(self) -> float:
        """Cost of all that can still be done, in the unit of `TaskSpec.cost`."""
        return max(self._left_cost, 0.0)

    def leases_of(self, worker: int) -> tuple[Lease, ...]:
        """Leases that a worker holds, the one it is running first."""
        return tuple(self._leases[lease_id] for lease_id in sorted(self._workers[worker].leases))

    def running(self, worker: int) -> tuple[TaskKey, ...]:
        """What is unfinished of the lease that a worker is running."""
        leases = self.leases_of(worker)
        return self._unfinished(leases[0].id) if leases else ()

    def _set_capacity(self, lease_id: int, capacity: BatchSize | None) -> None:
        lease = self._leases.get(lease_id)
        if capacity is not None and lease is not None and lease.worker in self._workers:
            self._workers[lease.worker].measured[lease.model] = capacity

    def _push(self, key: TaskKey) -> None:
        self._ready.push(key)
        self._queues.unpark_one()

    def _set_apart(self, tasks: tuple[TaskKey, ...]) -> None:
        """Queue tasks as a lease of their own."""
        self._apart.append(tasks)
        self._queues.unpark_all()

    def _queue(self, worker: int) -> None:
        """Put a worker where it belongs after a change of its leases."""
        if self._workers[worker].held:
            self._queues.remove(worker)
        else:
            self._queues.put(worker, len(self._workers[worker].leases))

    def _settled(self, key: TaskKey) -> bool:
        return key in self._done or key in self._quarantined or key in self._blocked

    def _close(self, key: TaskKey) -> None:
        lease_id = self._lease_of_task.pop(key, None)
        if lease_id is not None:
            self._open[lease_id].discard(key)

    def _return(self, lease_id: int) -> tuple[TaskKey, ...]:
        unfinished = self._unfinished(lease_id)
        self._forget(lease_id)
        for key in unfinished:
            self._push(key)
        return unfinished

    def _unfinished(self, lease_id: int) -> tuple[TaskKey, ...]:
        lease = self._leases.get(lease_id)
        return tuple(key for key in lease.tasks if key in self._open[lease_id]) if lease else ()

    def _forget(self, lease_id: int) -> None:
        for key in self._unfinished(lease_id):
            del self._lease_of_task[key]
        lease = self._leases.pop(lease_id, None)
        self._open.pop(lease_id, None)
        if lease is not None and lease.worker in self._workers:
            self._workers[lease.worker].leases.discard(lease_id)
            self._queue(lease.worker)

    def _block_dependents(self, key: TaskKey) -> None:
        for dependent in self._block(key):
            self._blocked.add(dependent)
            self._left_cost -= self._specs[dependent].cost

    def _block(self, key: TaskKey) -> list[TaskKey]:
        """All that cannot run because `key` will not."""
        found: dict[TaskKey, None] = {}
        stack = [key]
        while stack:
            for dependent in self._dependents[stack.pop()]:
                if dependent not in found and not self._settled(dependent):
                    found[dependent] = None
                    stack.append(dependent)
        return list(found)
