"""Rank 0: scheduler + transport + archive writer."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from typing import Protocol

from driver.archive.records import Attempt, TaskFailure, TaskKey
from driver.archive.writer import ArchiveWriter
from driver.campaign import inputs_of
from driver.errors import UsageError
from driver.interrupts import Interrupts
from driver.messages import Drain, Hello, LeaseEnd, LeaseFailure, Outcome, Refusal, Stop, ToMaster, Work
from driver.scheduler import Counts, Scheduler
from driver.transport import MasterTransport

log = logging.getLogger(__name__)


class Progress(Protocol):
    """Where the master tells how it gets on."""

    def update(self, counts: Counts, remaining_cost: float, workers: int) -> None:
        """Called at least once a second."""
        ...

    def failure(self, key: TaskKey, message: str, *, quarantined: bool) -> None:
        """A task has failed."""
        ...


@dataclass(frozen=True)
class Summary:
    """How a run ended: `interrupted_by` is the name of a signal, or "" if nothing was left that could be done."""

    counts: Counts
    interrupted_by: str
    seconds: float


class Master:
    """Hands out leases and commits what comes back, until nothing is left or it is asked to drain.

    Parameters
    ----------
    scheduler, transport, writer, interrupts, progress
        Its parts.
    grace_s : float
        After a signal, how long running leases may go on.
    commit_every_s : float
        No result waits longer than this for its commit.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        transport: MasterTransport,
        writer: ArchiveWriter,
        interrupts: Interrupts,
        progress: Progress,
        *,
        grace_s: float = 30.0,
        commit_every_s: float = 1.0,
    ) -> None:
        self._scheduler = scheduler
        self._transport = transport
        self._writer = writer
        self._interrupts = interrupts
        self._progress = progress
        self._grace_s = grace_s
        self._commit_every_s = commit_every_s
        self._hellos: dict[int, Hello] = {}
        self._waiting: list[Attempt] = []
        self._waiting_since = 0.0
        self._drain_sent = False
        self._urgent_sent = False

    def run(self) -> Summary:
        """Run the campaign to its end or to an interruption.

        Raises
        ------
        ArchiveError
            If results cannot be committed; what was committed before is safe.
        UsageError
            If a worker cannot use a model.
        """
        started = time.monotonic()
        try:
            while not self._finished():
                self._hand_out()
                message = self._transport.receive(self._commit_every_s / 2)
                if message is not None:
                    self._take(*message)
                if self._waiting and (not self._transport.ready() or self._overdue()):
                    self._commit()
                self._look_for_interrupt()
                self._progress.update(
                    self._scheduler.counts, self._scheduler.remaining_cost(), len(self._scheduler.workers)
                )
            self._commit()
        finally:
            for worker in self._transport.workers:
                self._transport.send(worker, Stop())
            self._transport.close()
        name = self._interrupts.name if self._scheduler.counts.left else ""
        return Summary(self._scheduler.counts, name, time.monotonic() - started)

    def _finished(self) -> bool:
        if self._waiting or not self._scheduler.idle:
            return False
        return self._scheduler.counts.left == 0 or self._interrupts.requested

    def _hand_out(self) -> None:
        for lease in self._scheduler.assign():
            atoms = sum(self._scheduler.spec(key).atoms for key in lease.tasks)
            inputs = tuple(inputs_of(key, self._writer.view) for key in lease.tasks)
            log.debug(
                "lease %d: %d %s tasks of %s to rank %d", lease.id, len(inputs), lease.stage, lease.model, lease.worker
            )
            self._transport.send(lease.worker, Work(lease.id, atoms, lease.model, lease.stage, inputs))

    def _take(self, worker: int, message: ToMaster) -> None:
        if isinstance(message, Hello):
            self._hellos[worker] = message
            self._scheduler.add_worker(worker, message.capacity_atoms)
            log.info("rank %d on %s uses %s", worker, message.host, message.device)
        elif isinstance(message, Refusal):
            raise UsageError(f"rank {worker}: {message.message}")
        elif isinstance(message, Outcome):
            self._wait_for_commit(self._attempt(worker, message))
        elif isinstance(message, LeaseEnd):
            # Outcomes come before the end of their lease, so all of them are known here and can be committed first.
            self._commit()
            self._scheduler.end_lease(message.lease_id)
        elif isinstance(message, LeaseFailure):
            self._commit()
            self._split(worker, message)

    def _attempt(self, worker: int, message: Outcome) -> Attempt:
        hello = self._hellos[worker]
        number = self._scheduler.next_attempt(message.outcome.key)
        return Attempt(message.outcome, number, message.seconds, worker, hello.host, hello.device)

    def _split(self, worker: int, message: LeaseFailure) -> None:
        if message.out_of_memory:
            self._scheduler.set_capacity(worker, message.capacity_atoms)
        culprit = self._scheduler.split_lease(message.lease_id)
        log.warning("lease %d on rank %d failed: %s: %s", message.lease_id, worker, message.exception, message.message)
        if culprit is not None:
            outcome = TaskFailure(culprit, message.exception, message.message, message.traceback)
            self._wait_for_commit(self._attempt(worker, Outcome(message.lease_id, outcome, message.seconds)))

    def _wait_for_commit(self, attempt: Attempt) -> None:
        if not self._waiting:
            self._waiting_since = time.monotonic()
        self._waiting.append(attempt)

    def _overdue(self) -> bool:
        return time.monotonic() - self._waiting_since >= self._commit_every_s

    def _commit(self) -> None:
        """Make what has come durable; only then does the scheduler learn of it."""
        if not self._waiting:
            return
        decided = [self._decide(attempt) for attempt in self._waiting]
        self._writer.commit(decided)
        self._waiting = []
        for attempt in decided:
            if isinstance(attempt.outcome, TaskFailure):
                self._scheduler.fail(attempt.key, permanent=attempt.outcome.permanent)
                self._progress.failure(attempt.key, attempt.outcome.message, quarantined=attempt.quarantined)
            else:
                self._scheduler.finish(attempt.key)

    def _decide(self, attempt: Attempt) -> Attempt:
        if isinstance(attempt.outcome, TaskFailure):
            quarantined = self._scheduler.would_quarantine(attempt.key, permanent=attempt.outcome.permanent)
            return replace(attempt, quarantined=quarantined)
        return attempt

    def _look_for_interrupt(self) -> None:
        if not self._interrupts.requested or (self._drain_sent and not self._interrupts.urgent) or self._urgent_sent:
            return
        grace_s = 0.0 if self._interrupts.urgent else self._grace_s
        log.warning("%s: handing out nothing more; what runs may go on for %.0f s", self._interrupts.name, grace_s)
        self._scheduler.drain()
        for worker in self._transport.workers:
            self._transport.send(worker, Drain(grace_s))
        self._drain_sent, self._urgent_sent = True, self._interrupts.urgent
