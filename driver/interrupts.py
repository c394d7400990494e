"""Signals turned into a request to drain. Handlers only set a flag; everybody else asks for it."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import FrameType

from driver.errors import UsageError


class Interrupts:
    """Collects the signals that ask a run to end.

    The first one asks to drain (finish what runs, begin nothing); a second one, more than a second later, asks to
    leave what runs at once. Usable as a context manager, which restores the previous handlers.

    Parameters
    ----------
    signals : iterable of str
        Names, as `SIGTERM`.
    earlier : Interrupts, optional
        Whose signals count here too.

    Raises
    ------
    UsageError
        If a name is no signal of this system.
    """

    def __init__(
        self, signals: Iterable[str] = ("SIGTERM", "SIGINT", "SIGUSR1"), earlier: Interrupts | None = None
    ) -> None:
        self._numbers = [_number(name) for name in signals]
        self._previous: dict[int, object] = {}
        self._first: float | None = None
        self.name = ""
        """Name of the first signal that came (SIGINT is called Ctrl-C), "" so far."""
        self.urgent = False
        """A second signal has come."""
        if earlier is not None and earlier.requested:
            self.request(earlier.name)

    @property
    def requested(self) -> bool:
        """A signal has come."""
        return self._first is not None

    @property
    def seconds_since_request(self) -> float:
        """0 before any."""
        return 0.0 if self._first is None else time.monotonic() - self._first

    def request(self, name: str = "request") -> None:
        """Ask for a drain, unless one is asked for already."""
        if self._first is None:
            self._first, self.name = time.monotonic(), name

    def __enter__(self) -> Interrupts:
        for number in self._numbers:
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._first is not None and time.monotonic() - self._first > 1.0:
            self.urgent = True
        self.request("Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name)


@contextlib.contextmanager
def leaving_when_overdue(interrupts: Interrupts, seconds: float, leave: Callable[[int], None]) -> Iterator[None]:
    """End this process when it is still in the block so long after a request to drain.

    For a process that computes itself: what it computes may be unable to stop. Nothing committed is lost by leaving.

    Parameters
    ----------
    interrupts : Interrupts
    seconds : float
        After the request.
    leave : callable
        Ends the process with an exit code.
    """
    through = threading.Event()

    def watch() -> None:
        while not through.wait(0.2):
            if interrupts.requested and interrupts.seconds_since_request > seconds:
                print(
                    "latdyn: what runs cannot be interrupted and is left; run the same command again", file=sys.stderr
                )
                leave(75)

    threading.Thread(target=watch, name="overdue", daemon=True).start()
    try:
        yield
    finally:
        through.set()


def _number(name: str) -> int:
    try:
        return signal.Signals[name.upper()].value
    except KeyError:
        raise UsageError(
            f"signals: {name!r} is no signal of this system; give names such as SIGTERM or SIGUSR1"
        ) from None
