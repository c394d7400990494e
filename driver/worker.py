"""Ranks 1..n: runs leases, reports results and failures, never raises."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from driver.archive.records import TaskFailure, TaskResult
from driver.batch_size import BatchSize, BatchSizer, Memory
from driver.errors import InterruptedRunError, LatdynError
from driver.interrupts import Interrupts
from driver.messages import (
    Drain,
    Hello,
    LeaseEnd,
    LeaseFailure,
    Leaving,
    Notice,
    Outcome,
    Refusal,
    Stop,
    ToMaster,
    ToWorker,
    Work,
)
from driver.models import ModelFile

if TYPE_CHECKING:
    from driver.tasks import TaskInput

BATCHED_STAGES = frozenset({"displace", "dynamics", "rescore"})
"""Stages that run the tasks of a lease together; the others run them one after the other."""
SIZED_STAGE = "dynamics"
"""The stage whose leases are its batches: what they take decides how large the next ones are."""


class StageRunner(Protocol):
    """Runs the tasks of a lease: the seam between a worker and the numerical core (see `driver.stages.dispatch`)."""

    def check(self, models: Iterable[ModelFile], stop: Callable[[], bool]) -> Iterator[str]:
        """Make ready for models, yielding what the user should know; raise if one cannot be used.

        May end early once `stop()` is true.
        """
        ...

    def run(
        self, stage: str, inputs: Sequence[TaskInput], model: ModelFile, stop: Callable[[], bool]
    ) -> Iterator[TaskResult | TaskFailure]:
        """Yield an outcome for each task, as they come; may end early once `stop()` is true."""
        ...

    def notices(self) -> list[str]:
        """Return what has come up since the last call that the user should know."""
        ...

    def memory(self) -> Memory | None:
        """Return what the last run needed, where that limits batches."""
        ...

    def release_memory(self, error: Exception) -> bool:
        """Return whether `error` says that memory ran out, having freed what can be freed."""
        ...

    def defect(self) -> str:
        """Return why the device cannot be used any more; "" if it can."""
        ...


@dataclass(frozen=True)
class WorkerIdentity:
    """Who a worker is, for provenance, and what it takes in a batch: `fixed` if the user has said so."""

    rank: int
    host: str
    device: str
    capacity_atoms: int
    fixed: bool = False


class UnfitWorker:
    """Stands in for a worker that could not be set up, so that the master hears why."""

    def __init__(self, host: str, error: Exception) -> None:
        self._host = host
        self._reason = _described(error)

    def start(self) -> Iterator[ToMaster]:
        """Say why there is no worker."""
        yield Refusal(self._reason, self._host)

    def handle(self, message: ToWorker) -> Iterator[ToMaster]:
        """Do nothing."""
        return iter(())


class Worker:
    """Deals with the messages of the master, one at a time.

    Parameters
    ----------
    identity : WorkerIdentity
    models : mapping of str to ModelFile
    runner : StageRunner
    pending : callable
        Messages that have come but not been handed over yet; asked between time steps, so that a request to drain is
        seen while a lease runs.
    interrupts : Interrupts
        This process's own signals: launchers send them to every rank.
    grace_s : float
        How long a running lease may go on after a signal of this process.
    """

    def __init__(
        self,
        identity: WorkerIdentity,
        models: Mapping[str, ModelFile],
        runner: StageRunner,
        pending: Callable[[], Sequence[ToWorker]],
        interrupts: Interrupts,
        grace_s: float,
    ) -> None:
        self._identity = identity
        self._models = models
        self._runner = runner
        self._pending = pending
        self._interrupts = interrupts
        self._grace_s = grace_s
        self._deadline: float | None = None
        self._sizers = {key: BatchSizer(identity.capacity_atoms, fixed=identity.fixed) for key in models}

    def start(self) -> Iterator[ToMaster]:
        """Load the models, then introduce itself."""
        try:
            yield from map(Notice, self._runner.check(self._models.values(), self._must_stop))
        except InterruptedRunError:
            yield self._leaving()
            return
        except Exception as error:
            yield self._refusal(_described(error))
            return
        if self._must_stop():
            yield self._leaving()
            return
        yield Hello(self._identity.host, os.getpid(), self._identity.device, BatchSize(self._identity.capacity_atoms))

    def handle(self, message: ToWorker) -> Iterator[ToMaster]:
        """Deal with one message."""
        if isinstance(message, Drain):
            self._drain(message.grace_s)
        elif isinstance(message, Work):
            yield from self._run(message)

    def _refusal(self, reason: str) -> Refusal:
        return Refusal(reason, self._identity.host, self._identity.device)

    def _leaving(self) -> Leaving:
        return Leaving(f"asked to end ({self._interrupts.name or 'by the master'})")

    def _run(self, work: Work) -> Iterator[ToMaster]:
        started = time.perf_counter()
        self._look_for_drain()
        if self._deadline is not None:
            yield self._leaving()  # or the master would hand the same tasks out here again, and again
            return
        total_atoms = sum(len(i.structure) for i in work.inputs)
        shares = {i.key: len(i.structure) / total_atoms for i in work.inputs}
        last = started
        results = 0
        try:
            for outcome in self._runner.run(work.stage, work.inputs, self._models[work.model], self._must_stop):
                now = time.perf_counter()
                if self._blames_device(outcome) and (defect := self._runner.defect()):
                    yield self._refusal(defect)
                    return
                batched = work.stage in BATCHED_STAGES
                yield Outcome(work.lease_id, outcome, (now - started) * shares[outcome.key] if batched else now - last)
                last = now
                results += isinstance(outcome, TaskResult)
                if self._must_stop():
                    break
        except Exception as error:
            failure = self._lease_failure(work, error, time.perf_counter() - started)
            defect = "" if failure.out_of_memory else self._runner.defect()
            yield self._refusal(f"{defect} (after {_described(error)})") if defect else failure
        else:
            if work.stage == SIZED_STAGE and results == len(work.inputs):
                self._sizers[work.model].fitted(work.size, time.perf_counter() - started, self._runner.memory())
            yield from map(Notice, self._runner.notices())
            yield LeaseEnd(work.lease_id, self._sizers[work.model].capacity)

    def _lease_failure(self, work: Work, error: Exception, seconds: float) -> LeaseFailure:
        out_of_memory = self._runner.release_memory(error)
        if out_of_memory:
            self._sizers[work.model].refused(work.size)
        return LeaseFailure(
            work.lease_id,
            type(error).__name__,
            str(error),
            traceback.format_exc(),
            seconds,
            out_of_memory,
            self._sizers[work.model].capacity,
        )

    @staticmethod
    def _blames_device(outcome: TaskResult | TaskFailure) -> bool:
        """Whether an outcome may be the fault of the device rather than of the task."""
        return isinstance(outcome, TaskFailure) and not outcome.permanent

    def _drain(self, grace_s: float) -> None:
        deadline = time.monotonic() + grace_s
        self._deadline = deadline if self._deadline is None else min(self._deadline, deadline)

    def _look_for_drain(self) -> None:
        waiting = self._pending()  # asked each time: it shows the others that this worker gets on
        for message in waiting:
            if isinstance(message, Drain):
                self._drain(message.grace_s)
            elif isinstance(message, Stop):  # the master has ended without waiting for what runs here
                self._drain(0.0)
        if self._interrupts.requested and self._deadline is None:
            self._drain(self._grace_s)

    def _must_stop(self) -> bool:
        """Whether to leave what runs: the grace after a request to drain is over."""
        self._look_for_drain()
        return self._interrupts.urgent or (self._deadline is not None and time.monotonic() >= self._deadline)


def _described(error: Exception) -> str:
    """Say in one line what went wrong in setting a worker up."""
    if isinstance(error, LatdynError):
        return str(error)
    first, *_ = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {first}"
