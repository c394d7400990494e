"""Rank 0: scheduler + transport + archive writer."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass, replace

from driver.archive.records import Attempt, LostWorker, TaskFailure, TaskKey, TaskResult
from driver.archive.writer import ArchiveWriter
from driver.batch_size import NOTHING
from driver.blame import Blame
from driver.campaign import inputs_of
from driver.errors import InterruptedRunError, UsageError
from driver.group_commit import GroupCommit
from driver.interrupts import Interrupts
from driver.liveness import Liveness
from driver.messages import (
    Drain,
    Gone,
    Hello,
    LeaseEnd,
    LeaseFailure,
    Leaving,
    Notice,
    Outcome,
    Refusal,
    ToMaster,
    Work,
)
from driver.progress import Progress
from driver.scheduler import Scheduler
from driver.settings import ExecutionSettings
from driver.tasks import Counts
from driver.transport import MasterTransport

log = logging.getLogger(__name__)

END_MARGIN_S = 10.0
"""Besides the grace, for the last commits before the run is ended from outside."""

DRAIN_MARGIN_S = 5.0
"""Besides the grace, for what runs to notice that it is over; then the run ends without it."""

BURST = 256
"""Messages taken before anything else is looked at."""

LOOK_S, UPDATE_S = 1.0, 0.2
"""Between two looks for workers that hang, and between two reports of progress."""


@dataclass(frozen=True)
class Summary:
    """How a run ended: `interrupted_by` is the name of a signal, or "" if nothing was left that could be done."""

    counts: Counts
    interrupted_by: str
    seconds: float


class Master:
    """Hands out leases and commits what comes back, until nothing is left or it is asked to drain.

    A message costs the same however many workers there are. Results share commits: one is made when its oldest result
    has waited for `commit_every_s`, or when nothing else is to be done and the last one is long enough ago that
    commits take a fifth of the time at most.

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
        self._blame = Blame()
        self._held: set[int] = set()
        self._hellos: dict[int, Hello] = {}
        self._noticed: set[str] = set()
        self._expected = set(transport.workers)
        self._refusals: dict[int, str] = {}
        self._commits = GroupCommit(settings.commit_every_s)
        self._next_look = self._next_update = 0.0
        self._gpus_are_there = False
        self._drained_at: float | None = None
        self._urgent_sent = False

    def run(self) -> Summary:
        """Run the campaign to its end or to an interruption.

        Raises
        ------
        ArchiveError
            If results cannot be committed; what was committed before is safe.
        UsageError
            If no worker can be used at all.
        InterruptedRunError
            If a worker is lost and this MPI cannot go on without it.
        """
        started = time.monotonic()
        for worker in self._expected:
            self._liveness.heard(worker, started)
        try:
            while not self._finished():
                self._hand_out()
                self._take_messages()
                if self._commit_is_due():
                    self._commit()
                self._look_around()
            self._commit()
        finally:
            self._transport.close()
        self._update_progress()
        name = self._interrupts.name if self._scheduler.counts.left else ""
        return Summary(self._scheduler.counts, name, time.monotonic() - started)

    def _finished(self) -> bool:
        """Nothing is under way, and nothing is left that can or shall be done."""
        if self._drained_at is not None:
            deadline = self._drained_at + self._grace_s + DRAIN_MARGIN_S
            if time.monotonic() > deadline and not self._scheduler.idle:
                log.warning("what still runs after the grace is left")
                return True
        if self._commits.waiting or not self._scheduler.idle:
            return False
        return self._scheduler.counts.left == 0 or self._interrupts.requested

    @property
    def _grace_s(self) -> float:
        """How long what runs may go on after a request to end."""
        return 0.0 if self._interrupts.urgent else self._settings.grace_s

    # -- work out -----------------------------------------------------------------------------------------------------

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
        if self._held and self._scheduler.idle and not self._commits.waiting:
            self._release_all()  # nobody else is at work whose results could settle whose fault it was
        nothing_fits = self._scheduler.idle and self._scheduler.workers and self._scheduler.counts.left
        if nothing_fits and not self._commits.waiting and self._end_s is not None:
            self._interrupts.request("wall time")

    def _expected_s(self, worker: int, key: TaskKey) -> float:
        return self._liveness.expected_s(worker, key.stage, self._scheduler.spec(key).cost)

    # -- messages in --------------------------------------------------------------------------------------------------

    def _take_messages(self) -> None:
        """Wait for a message, then take those that have come meanwhile."""
        wait_s = self._commits.wait_s(time.monotonic())
        for taken in range(BURST):
            if taken and not self._transport.ready():
                return
            message = self._transport.receive(0.0 if taken else wait_s)
            if message is None:
                return
            if message[0] in self._expected:
                self._take(*message)

    def _take(self, worker: int, message: ToMaster) -> None:
        self._liveness.heard(worker, time.monotonic())
        if isinstance(message, Outcome):
            self._take_outcome(worker, message)
        elif isinstance(message, LeaseEnd):
            self._scheduler.end_lease(message.lease_id, message.capacity)
        elif isinstance(message, LeaseFailure):
            self._split(worker, message)
        elif isinstance(message, Hello):
            self._welcome(worker, message)
        elif isinstance(message, Refusal):
            self._drop(worker, message.message, message.host, message.device)
        elif isinstance(message, Leaving):
            self._let_go(worker, message.reason)
        elif isinstance(message, Gone):
            self._lose(worker, message.reason)
        elif isinstance(message, Notice) and message.text not in self._noticed:  # every rank may say it
            self._noticed.add(message.text)
            log.info("rank %d: %s", worker, message.text)

    def _take_outcome(self, worker: int, message: Outcome) -> None:
        key = message.outcome.key
        if isinstance(message.outcome, TaskResult):
            self._liveness.measured(worker, key.stage, self._scheduler.spec(key).cost, message.seconds)
        self._scheduler.report(key)
        self._wait_for_commit(self._attempt(worker, message))

    def _split(self, worker: int, message: LeaseFailure) -> None:
        culprit = self._scheduler.split_lease(message.lease_id, message.capacity)
        log.warning("lease %d on rank %d failed: %s: %s", message.lease_id, worker, message.exception, message.message)
        if culprit is not None:
            outcome = TaskFailure(culprit, message.exception, message.message, message.traceback)
            self._wait_for_commit(self._attempt(worker, Outcome(message.lease_id, outcome, message.seconds)))

    def _attempt(self, worker: int, message: Outcome) -> Attempt:
        hello = self._hellos[worker]
        number = self._scheduler.next_attempt(message.outcome.key)
        return Attempt(message.outcome, number, message.seconds, worker, hello.host, hello.device)

    # -- workers that come and go -------------------------------------------------------------------------------------

    def _welcome(self, worker: int, hello: Hello) -> None:
        self._hellos[worker] = hello
        self._scheduler.add_worker(worker, hello.capacity)
        self._scheduler.expect(len(self._expected - self._hellos.keys()))
        log.info("rank %d on %s uses %s", worker, hello.host, hello.device)
        if self._settings.device == "auto" and hello.device != "cpu":
            self._gpus_are_there = True
        if self._gpus_are_there:
            for other in [w for w in self._scheduler.workers if self._hellos[w].device == "cpu"]:
                self._drop(other, "it sees no GPU, while other ranks do; execution.device=cpu uses CPUs only")

    def _drop(self, worker: int, reason: str, host: str = "", device: str = "") -> None:
        """Go on without a worker that cannot be used; no task is to blame.

        Raises
        ------
        UsageError
            If all workers have refused.
        """
        host, device = self._note_loss(worker, reason, host, device)
        log.error("rank %d on %s is not used: %s", worker, host, reason)
        self._refusals[worker] = reason
        if len(self._refusals) == len(self._transport.workers):
            raise UsageError(f"rank {worker}: {reason}")
        self._go_on_without(worker)

    def _let_go(self, worker: int, reason: str) -> None:
        """Go on without a worker that a signal has asked to end; where all ranks have been asked, that is no news."""
        if not self._interrupts.requested:
            host, _ = self._note_loss(worker, reason)
            log.warning("rank %d on %s takes no more work: %s", worker, host, reason)
        self._go_on_without(worker)

    def _lose(self, worker: int, reason: str) -> None:
        """Go on without a worker that is dead or hangs, if MPI can. The one task that it was running counts it as a
        failure.

        Raises
        ------
        InterruptedRunError
            If MPI cannot go on.
        """
        self._commit()
        host, device = self._note_loss(worker, reason)
        log.error("rank %d on %s is lost: %s", worker, host, reason)
        if worker in self._scheduler.workers:
            suspects = self._scheduler.lose_worker(worker)
            if len(suspects) == 1 and not self._interrupts.requested:
                message = f"rank {worker} on {host} was lost while it ran this task: {reason}"
                failure = TaskFailure(suspects[0], "WorkerLost", message, "")
                number = self._scheduler.next_attempt(suspects[0])
                self._wait_for_commit(Attempt(failure, number, 0.0, worker, host, device))
                self._commit()
        self._transport.abandon(worker)
        if not self._transport.survives_deaths:
            message = (
                f"rank {worker} on {host} is lost ({reason}) and this MPI cannot go on without it; "
                "run the same command again"
            )
            log.error(message)  # the launcher may end this rank before the error is printed
            raise InterruptedRunError(message)
        self._go_on_without(worker)

    def _note_loss(self, worker: int, reason: str, host: str = "", device: str = "") -> tuple[str, str]:
        """Enter a lost worker into the archive; return its host and device."""
        hello = self._hellos.get(worker)
        host = host or (hello.host if hello else "unknown host")
        device = device or (hello.device if hello else "")
        self._writer.note_lost_worker(LostWorker(worker, host, device, reason, time.time()))
        return host, device

    def _go_on_without(self, worker: int) -> None:
        self._expected.discard(worker)
        if worker in self._scheduler.workers:
            self._scheduler.remove_worker(worker)
        self._scheduler.expect(len(self._expected - self._hellos.keys()))
        self._liveness.forget(worker)
        self._blame.forget(worker)
        self._held.discard(worker)
        self._judge_workers()
        if not self._expected:
            self._interrupts.request("no worker left")

    def _look_for_hangs(self, now: float) -> None:
        """Give up workers that live and get nowhere."""
        running = {}
        for worker in self._scheduler.workers:
            if leases := self._scheduler.leases_of(worker):
                cost = sum(self._scheduler.spec(key).cost for key in self._scheduler.running(worker))
                running[worker] = (leases[0].stage, cost)
        for worker in self._expected - self._hellos.keys():
            running[worker] = ("", 0.0)  # making its models ready: told step by step
        for silence in self._liveness.silent(running, now):
            self._lose(silence.worker, str(silence))

    def _wait_for_commit(self, attempt: Attempt) -> None:
        self._commits.add(attempt, time.monotonic())

    def _commit_is_due(self) -> bool:
        now = time.monotonic()
        if self._commits.overdue(now):
            return True
        if not self._commits.waiting or self._transport.ready():
            return False
        return self._commits.rested(now) or self._scheduler.hungry  # what has come may be what others wait for

    def _commit(self) -> None:
        """Make what has come durable; only then does the scheduler learn of it."""
        if not self._commits.waiting:
            return
        began = time.monotonic()
        decided = [self._decide(attempt) for attempt in self._commits.waiting]
        self._writer.commit(decided)
        self._commits.committed(began, time.monotonic())
        for attempt in decided:
            self._conclude(attempt)
        if self._held or any(isinstance(attempt.outcome, TaskFailure) for attempt in decided):
            self._judge_workers()

    def _decide(self, attempt: Attempt) -> Attempt:
        if isinstance(attempt.outcome, TaskFailure):
            quarantined = self._scheduler.would_quarantine(
                attempt.key, permanent=attempt.outcome.permanent, worker=attempt.rank
            )
            return replace(attempt, quarantined=quarantined)
        return attempt

    def _conclude(self, attempt: Attempt) -> None:
        if isinstance(attempt.outcome, TaskFailure):
            self._scheduler.fail(attempt.key, permanent=attempt.outcome.permanent, worker=attempt.rank)
            self._progress.failure(attempt.key, attempt.outcome.message, quarantined=attempt.quarantined)
            if not (attempt.outcome.permanent or attempt.quarantined) and attempt.rank in self._scheduler.workers:
                self._blame.failed(attempt.rank, attempt.key)
        else:
            self._scheduler.finish(attempt.key)
            self._blame.succeeded(attempt.rank, attempt.key)

    def _judge_workers(self) -> None:
        """Hold back workers on which everything fails, and take out those whose failures succeed elsewhere."""
        for worker in tuple(self._scheduler.workers):
            if count := self._blame.convicted(worker):
                self._drop(
                    worker, f"{count} tasks in a row failed on it and succeeded on others: its device is at fault"
                )
        suspects = self._blame.suspects(self._scheduler.workers, more_to_come=self._scheduler.workers_to_come > 0)
        for worker in (suspects ^ self._held) & self._scheduler.workers:
            self._scheduler.hold(worker, held=worker in suspects)
        self._held = suspects

    def _release_all(self) -> None:
        for worker in self._held & self._scheduler.workers:
            self._scheduler.hold(worker, held=False)
            self._blame.forget(worker)
        self._held = set()

    def _look_around(self) -> None:
        now = time.monotonic()
        self._look_for_interrupt(now)
        if now >= self._next_look:
            self._next_look = now + LOOK_S
            self._look_for_hangs(now)
        if now >= self._next_update:
            self._next_update = now + UPDATE_S
            self._update_progress()

    def _update_progress(self) -> None:
        scheduler = self._scheduler
        self._progress.update(scheduler.counts, scheduler.remaining_cost(), len(scheduler.workers))

    def _look_for_interrupt(self, now: float) -> None:
        if self._end_s is not None and not self._interrupts.requested:
            margin = self._settings.grace_s + END_MARGIN_S
            if now > self._end_s - margin:
                self._interrupts.request("wall time")
        if not self._interrupts.requested:
            return
        urgent = self._interrupts.urgent
        if self._drained_at is not None and (not urgent or self._urgent_sent):
            return
        log.warning("%s: no new work; what runs may go on for %.0f s", self._interrupts.name, self._grace_s)
        self._scheduler.drain()
        for worker in self._expected:
            self._transport.send(worker, Drain(self._grace_s))
        self._drained_at, self._urgent_sent = now, urgent
