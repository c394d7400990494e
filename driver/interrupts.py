"""Signals turned into a request to drain. Handlers only set a flag; everybody else asks for it."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterable
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


def kill_process(pid: int) -> None:
    """End a rank of this node that no longer answers; it may be gone already."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)


def _number(name: str) -> int:
    try:
        return signal.Signals[name.upper()].value
    except KeyError:
        raise UsageError(
            f"signals: {name!r} is no signal of this system; give names such as SIGTERM or SIGUSR1"
        ) from None
