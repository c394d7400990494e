"""Master and worker in one process."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

from driver.messages import ToMaster, ToWorker
from driver.transport.ports import Handler


class InProcessTransport:
    """One worker in the master's own process: it computes whenever the master waits for a message."""

    def __init__(self) -> None:
        self.workers: tuple[int, ...] = (0,)
        self.survives_deaths = False
        self._inbox: deque[ToWorker] = deque()

    def attach(self, worker: Handler) -> None:
        """Say who the worker is."""
        self._worker = worker
        self._running: Iterator[ToMaster] = worker.start()

    def pending(self) -> Sequence[ToWorker]:
        """Messages that the worker has not dealt with yet."""
        return tuple(self._inbox)

    def send(self, worker: int, message: ToWorker) -> None:
        """Put a message in the worker's inbox."""
        self._inbox.append(message)

    def receive(self, timeout_s: float) -> tuple[int, ToMaster] | None:
        """Let the worker compute until it has something to say."""
        while True:
            answer = next(self._running, None)
            if answer is not None:
                return 0, answer
            if not self._inbox:
                return None
            self._running = self._worker.handle(self._inbox.popleft())

    def ready(self) -> bool:
        """Never: a message costs computing first, and what is finished should be committed before."""
        return False

    def abandon(self, worker: int) -> None:
        """Never asked for: this worker dies with its master."""

    def close(self) -> None:
        """Nothing is under way."""
