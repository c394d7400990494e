"""Rank 0: scheduler + transport + archive writer."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass, replace
from typing import Protocol

from driver.archive.records import Attempt, TaskFailure, TaskKey, TaskResult
from driver.archive.writer import ArchiveWriter
from driver.batch_size import NOTHING
from driver.campaign import inputs_of
from driver.errors import InterruptedRunError, UsageError
from driver.interrupts import Interrupts, kill_process
from driver.liveness import Liveness
from driver.messages import (
    Drain,
    Gone,
    Hello,
    Kill,
    LeaseEnd,
    LeaseFailure,
    Notice,
    Outcome,
    Refusal,
    Stop,
    ToMaster,
    Work,
)
from driver.scheduler import Counts, Scheduler
from driver.settings import ExecutionSettings
from driver.transport import MasterTransport

log = logging.getLogger(__name__)

END_MARGIN_S = 10.0
"""Besides the grace, for the last commits before the run is ended from outside."""


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
    settings : ExecutionSettings
    host : str
        Name of this node.
    end_s : float or None
        When the run will be ended from outside, by `time.monotonic`.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        transport: MasterTransport,
        writer: ArchiveWriter,
        interrupts: Interrupts,
        progress: Progress,
        settings: ExecutionSettings,
        *,
        host: str = "",
        end_s: float | None = None,
    ) -> None:
        self._scheduler = scheduler
        self._transport = transport
        self._writer = writer
        self._interrupts = interrupts
        self._progress = progress
        self._settings = settings
        self._host = host
        self._end_s = end_s
        self._liveness = Liveness(settings.patience_s)
        self._hellos: dict[int, Hello] = {}
        self._noticed: set[str] = set()
        self._expected = set(transport.workers)
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
        InterruptedRunError
            If a worker is lost and this MPI cannot go on without it.
        """
        started = time.monotonic()
        try:
            while not self._finished():
                self._hand_out()
                message = self._transport.receive(self._settings.commit_every_s / 2)
                if message is not None and message[0] in self._expected:
                    self._take(*message)
                if self._waiting and (not self._transport.ready() or self._overdue()):
                    self._commit()
                self._look_for_silence()
                self._look_for_interrupt()
                self._progress.update(
                    self._scheduler.counts, self._scheduler.remaining_cost(), len(self._scheduler.workers)
                )
            self._commit()
        finally:
            for worker in self._expected:
                self._transport.send(worker, Stop())
            self._transport.close()
        name = self._interrupts.name if self._scheduler.counts.left else ""
        return Summary(self._scheduler.counts, name, time.monotonic() - started)

    def _finished(self) -> bool:
        """Nothing is under way, and nothing is left that can or shall be done."""
        if self._waiting or not self._scheduler.idle:
            return False
        return self._scheduler.counts.left == 0 or self._interrupts.requested

    def _hand_out(self) -> None:
        now = time.monotonic()
        left_s = math.inf if self._end_s is None else self._end_s - now - self._settings.grace_s - END_MARGIN_S
        for lease in self._scheduler.assign(left_s, self._expected_s):
            if len(self._scheduler.leases_of(lease.worker)) == 1:
                self._liveness.heard(lease.worker, now)  # it was idle: its silence begins now
            size = sum((self._scheduler.spec(key).size for key in lease.tasks), start=NOTHING)
            inputs = tuple(inputs_of(key, self._writer.view) for key in lease.tasks)
            log.debug(
                "lease %d: %d %s tasks of %s to rank %d", lease.id, len(inputs), lease.stage, lease.model, lease.worker
            )
            self._transport.send(lease.worker, Work(lease.id, size, lease.model, lease.stage, inputs))
        nothing_fits = self._scheduler.idle and self._scheduler.workers and self._scheduler.counts.left
        if nothing_fits and not self._waiting and self._end_s is not None:
            self._interrupts.request("wall time")

    def _expected_s(self, worker: int, key: TaskKey) -> float:
        return self._liveness.expected_s(worker, key.stage, self._scheduler.spec(key).cost)

    def _take(self, worker: int, message: ToMaster) -> None:
        self._liveness.heard(worker, time.monotonic())
        if isinstance(message, Gone):
            self._lose(worker, message.reason)
        elif isinstance(message, Hello):
            self._hellos[worker] = message
            self._scheduler.add_worker(worker, message.capacity)
            log.info("rank %d on %s uses %s", worker, message.host, message.device)
        elif isinstance(message, Refusal):
            raise UsageError(f"rank {worker}: {message.message}")
        elif isinstance(message, Notice):
            if message.text not in self._noticed:  # every rank may say it
                self._noticed.add(message.text)
                log.info("rank %d: %s", worker, message.text)
        elif isinstance(message, Outcome):
            if isinstance(message.outcome, TaskResult):
                key = message.outcome.key
                self._liveness.measured(worker, key.stage, self._scheduler.spec(key).cost, message.seconds)
            self._wait_for_commit(self._attempt(worker, message))
        elif isinstance(message, LeaseEnd):
            # Outcomes come before the end of their lease, so all of them are known here and can be committed first.
            self._commit()
            self._scheduler.end_lease(message.lease_id, message.capacity)
        elif isinstance(message, LeaseFailure):
            self._commit()
            self._split(worker, message)

    def _attempt(self, worker: int, message: Outcome) -> Attempt:
        hello = self._hellos[worker]
        number = self._scheduler.next_attempt(message.outcome.key)
        return Attempt(message.outcome, number, message.seconds, worker, hello.host, hello.device)

    def _lose(self, worker: int, reason: str) -> None:
        """Go on without a worker. The one task that it was running counts it as a failed attempt."""
        self._commit()
        self._expected.discard(worker)
        self._transport.abandon(worker)
        self._liveness.forget(worker)
        hello = self._hellos.get(worker, Hello("unknown host", 0, "", NOTHING))
        log.error("rank %d on %s is lost: %s", worker, hello.host, reason)
        if worker in self._scheduler.workers:
            suspects = self._scheduler.lose_worker(worker)
            if len(suspects) == 1:
                message = f"rank {worker} on {hello.host} was lost while it ran this task: {reason}"
                failure = TaskFailure(suspects[0], "WorkerLost", message, "")
                number = self._scheduler.next_attempt(suspects[0])
                self._wait_for_commit(Attempt(failure, number, 0.0, worker, hello.host, hello.device))
        if not self._expected:
            self._interrupts.request("no worker left")

    def _look_for_silence(self) -> None:
        """Give up workers that hang: their tasks go to others, their processes are killed."""
        running = {}
        for worker in self._scheduler.workers:
            if tasks := self._scheduler.running(worker):
                running[worker] = (tasks[0].stage, sum(self._scheduler.spec(key).cost for key in tasks))
        for silence in self._liveness.silent(running, time.monotonic()):
            hello = self._hellos[silence.worker]
            self._lose(silence.worker, str(silence))
            if not self._transport.survives_deaths:
                self._commit()
                message = (
                    f"rank {silence.worker} on {hello.host} hangs ({silence}) and this MPI cannot go on without it; "
                    "run the same command again"
                )
                log.error(message)  # the launcher may end this rank as soon as the other is killed
                self._kill(hello)
                raise InterruptedRunError(message)
            self._kill(hello)

    def _kill(self, hello: Hello) -> None:
        if hello.host == self._host:
            kill_process(hello.pid)
            return
        for worker in self._expected:
            other = self._hellos.get(worker)
            if other is not None and other.host == hello.host:
                self._transport.send(worker, Kill(hello.pid))
                return

    def _split(self, worker: int, message: LeaseFailure) -> None:
        culprit = self._scheduler.split_lease(message.lease_id, message.capacity)
        log.warning("lease %d on rank %d failed: %s: %s", message.lease_id, worker, message.exception, message.message)
        if culprit is not None:
            outcome = TaskFailure(culprit, message.exception, message.message, message.traceback)
            self._wait_for_commit(self._attempt(worker, Outcome(message.lease_id, outcome, message.seconds)))

    def _wait_for_commit(self, attempt: Attempt) -> None:
        if not self._waiting:
            self._waiting_since = time.monotonic()
        self._waiting.append(attempt)

    def _overdue(self) -> bool:
        return time.monotonic() - self._waiting_since >= self._settings.commit_every_s

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
        if self._end_s is not None and not self._interrupts.requested:
            margin = self._settings.grace_s + END_MARGIN_S
            if time.monotonic() > self._end_s - margin:
                self._interrupts.request("wall time")
        if not self._interrupts.requested or (self._drain_sent and not self._interrupts.urgent) or self._urgent_sent:
            return
        grace_s = 0.0 if self._interrupts.urgent else self._settings.grace_s
        log.warning("%s: handing out nothing more; what runs may go on for %.0f s", self._interrupts.name, grace_s)
        self._scheduler.drain()
        for worker in self._expected:
            self._transport.send(worker, Drain(grace_s))
        self._drain_sent, self._urgent_sent = True, self._interrupts.urgent
