"""The two ends of the conversation between master and workers."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from driver.errors import InterruptedRunError
from driver.messages import Begin, Bye, Gone, Leave, Stop, ToMaster, ToWorker
from driver.transport.world import EXIT_INTERRUPTED, World

CLOSE_S = 10.0
"""How long the master waits at the end for workers to say that they leave."""

BUSY_S = 3.0
"""A worker that has not ended so long after it was told to is in the middle of something that cannot be interrupted."""


class Handler(Protocol):
    """What a worker is to a transport."""

    def start(self) -> Iterator[ToMaster]:
        """Messages to send before any work."""
        ...

    def handle(self, message: ToWorker) -> Iterator[ToMaster]:
        """Deal with one message, yielding answers as they arise."""
        ...


class MasterTransport(Protocol):
    """The master's end."""

    workers: tuple[int, ...]
    survives_deaths: bool

    def send(self, worker: int, message: ToWorker) -> None:
        """Hand a message over; returns at once."""
        ...

    def receive(self, timeout_s: float) -> tuple[int, ToMaster] | None:
        """Return the next message and who sent it, or None when none has come in time."""
        ...

    def ready(self) -> bool:
        """Whether `receive` would return a message at once."""
        ...

    def abandon(self, worker: int) -> None:
        """Send nothing more to a worker, and do not wait for it at the end."""
        ...

    def close(self) -> None:
        """Tell the workers to end; returns at once."""
        ...


class MPIMaster:
    """The master's end over MPI.

    The loss of a worker, because MPI reports its death or because it gives no sign of life, arrives as a message,
    `Gone`. Whether the run can go on without it is another matter: `survives_deaths`.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._mailbox = world.mailbox
        self.workers: tuple[int, ...] = tuple(range(1, world.size))
        self.survives_deaths = world.survives_deaths
        self._expected = set(self.workers)
        self._stopped = False

    def begin(self, launch: Any, patience_s: float) -> None:
        """Tell all workers what there is to know."""
        self._mailbox.set_patience(patience_s)
        for worker in self.workers:
            self.send(worker, Begin(launch))

    def send(self, worker: int, message: ToWorker) -> None:
        """Hand a message over; to a lost worker nothing is sent."""
        if worker in self._expected:
            self._mailbox.send(worker, message)

    def receive(self, timeout_s: float) -> tuple[int, ToMaster] | None:
        """Return the next message and who sent it; this thread sleeps meanwhile."""
        return self._mailbox.get(timeout_s)

    def ready(self) -> bool:
        """Whether a message waits."""
        return not self._mailbox.empty()

    def abandon(self, worker: int) -> None:
        """End a worker, if it still can be told to, and expect nothing more of it."""
        self.send(worker, Leave())
        self._mailbox.flush(0.1)
        self._mailbox.forget(worker)
        self._expected.discard(worker)
        self._world.rank_was_lost(worker)

    def close(self) -> None:
        """Tell the workers to end; returns at once."""
        if not self._stopped:
            self._stopped = True
            for worker in tuple(self._expected):
                self.send(worker, Stop())

    def part(self) -> None:
        """Wait, but not for long, until all workers have said that they leave; note who has not."""
        self.close()
        deadline = time.monotonic() + CLOSE_S
        with contextlib.suppress(InterruptedRunError):  # MPI has failed: nobody parts
            while self._expected and (left_s := deadline - time.monotonic()) > 0:
                received = self._mailbox.get(left_s)
                if received is not None and isinstance(received[1], Gone | Bye):
                    self._parted(*received)
        for worker in tuple(self._expected):
            self.abandon(worker)

    def _parted(self, worker: int, message: Gone | Bye) -> None:
        if isinstance(message, Gone) or message.busy:
            self._world.rank_was_lost(worker)
        self._mailbox.forget(worker)
        self._expected.discard(worker)


class MPIWorker:
    """A worker's end over MPI."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._mailbox = world.mailbox
        self._told_to_stop_s: float | None = None
        self._now_s = 0.0
        self._busy = True
        self._said_busy = False
        self._mailbox.taken = self._take_at_once
        self._mailbox.turned = self._look_for_end
        self._mailbox.lost = self._master_is_lost

    def launch(self) -> Any:
        """Wait for the master to say what there is to know; None if there is nothing to do."""
        self._busy = False
        message = self._next()
        self._busy = True
        if isinstance(message, Begin):
            return message.launch
        self._say_bye()
        return None

    def set_patience(self, patience_s: float) -> None:
        """Say how long the master may give no sign of life."""
        self._mailbox.set_patience(patience_s)

    def pending(self) -> Sequence[ToWorker]:
        """Messages that have come and not been dealt with; asked between time steps, which shows progress."""
        self._mailbox.advance()
        return self._mailbox.waiting()

    def serve(self, worker: Handler) -> None:
        """Run a worker until it is told to stop. Its answers are sent as it yields them."""
        self._post(worker.start())
        while True:
            self._busy = False
            message = self._next()
            self._busy = True
            if isinstance(message, Stop):
                break
            self._post(worker.handle(message))
        self._say_bye()

    def _next(self) -> Any:
        received = None
        while received is None:
            received = self._mailbox.get(None)
        return received[1]

    def _post(self, answers: Iterator[ToMaster]) -> None:
        for answer in answers:
            self._mailbox.advance()
            self._mailbox.send(0, answer)

    def _say_bye(self) -> None:
        self._busy = False
        self._mailbox.send(0, Bye())
        self._mailbox.flush(CLOSE_S)

    # -- in the mailbox's thread --------------------------------------------------------------------------------------

    def _take_at_once(self, sender: int, message: Any) -> bool:
        if isinstance(message, Leave):
            os.kill(os.getpid(), signal.SIGKILL)
        if isinstance(message, Stop):
            self._told_to_stop_s = self._now_s
        return False

    def _look_for_end(self, now_s: float) -> None:
        """Leave a computation that goes on although this worker has been told to stop."""
        self._now_s = now_s
        if not self._busy or self._told_to_stop_s is None:
            return
        waited_s = now_s - self._told_to_stop_s
        if waited_s > BUSY_S and self._world.survives_deaths:
            os.kill(os.getpid(), signal.SIGKILL)
        if waited_s > BUSY_S and not self._said_busy:
            self._said_busy = True  # the master closes the archive, then ends all ranks
            self._mailbox.send(0, Bye(busy=True))
        if waited_s > BUSY_S + CLOSE_S:
            self._world.leave(EXIT_INTERRUPTED)

    def _master_is_lost(self, peer: int, reason: str) -> bool:
        print(f"latdyn: rank {self._world.rank}: lost the master: {reason}", file=sys.stderr, flush=True)
        self._world.kill_if_here(0)
        self._world.leave(EXIT_INTERRUPTED)
        return True
