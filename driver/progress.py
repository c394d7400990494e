"""How a run tells how it gets on: a live bar on a terminal, a line a minute in a batch log."""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path
from typing import Protocol

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as ProgressBar
from rich.text import Text

from driver.archive.records import TaskKey
from driver.tasks import Counts

log = logging.getLogger(__name__)


class Progress(Protocol):
    """Where the master tells how it gets on."""

    def update(self, counts: Counts, remaining_cost: float, workers: int) -> None:
        """Called several times a second."""
        ...

    def failure(self, key: TaskKey, message: str, *, quarantined: bool) -> None:
        """A task has failed."""
        ...


class Estimate:
    """Remaining time from the cost done so far; pure, the clock is an argument.

    Parameters
    ----------
    cost : float
        Cost of all that is left at the start.
    now_s : float
    """

    def __init__(self, cost: float, now_s: float) -> None:
        self._cost = cost
        self._start_s = now_s

    def remaining_s(self, cost: float, now_s: float) -> float | None:
        """Seconds to go, or None while nothing is done."""
        done = self._cost - cost
        return None if done <= 0 else (now_s - self._start_s) * cost / done


def duration(seconds: float | None) -> str:
    """Write a time span as people say it: 45 s, 12 min, 3 h 20 min."""
    if seconds is None:
        return "unknown"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


class LogProgress:
    """A line a minute."""

    def __init__(self, cost: float, every_s: float = 60.0) -> None:
        self._estimate = Estimate(cost, time.monotonic())
        self._every_s = every_s
        self._last = time.monotonic()
        self._done_before: int | None = None

    def update(self, counts: Counts, remaining_cost: float, workers: int) -> None:
        """Log how far the campaign is, once a minute."""
        now = time.monotonic()
        if self._done_before is None:
            self._done_before = counts.done
        if now - self._last < self._every_s:
            return
        rate = 60.0 * (counts.done - self._done_before) / (now - self._last)
        log.info(
            "%d of %d tasks done, %d quarantined, %d workers, %.1f tasks/min, %s to go",
            counts.done,
            counts.total,
            counts.quarantined,
            workers,
            rate,
            duration(self._estimate.remaining_s(remaining_cost, now)),
        )
        self._last, self._done_before = now, counts.done

    def failure(self, key: TaskKey, message: str, *, quarantined: bool) -> None:
        """Log a failed attempt."""
        log.warning("%s %s: %s", key, "quarantined" if quarantined else "failed, will be tried again", message)

    def close(self) -> None:
        """Nothing is open."""


class TerminalProgress:
    """A live bar with rate and remaining time; failures scroll above it."""

    def __init__(self, cost: float, console: Console) -> None:
        self._start = time.monotonic()
        self._estimate = Estimate(cost, self._start)
        self._console = console
        self._first_done: int | None = None
        self._bar = ProgressBar(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=console,
        )
        self._task = self._bar.add_task("tasks", total=None, note="")
        self._live = Live(self._bar, console=console, refresh_per_second=4)
        self._live.start()

    def update(self, counts: Counts, remaining_cost: float, workers: int) -> None:
        """Redraw."""
        now = time.monotonic()
        if self._first_done is None:
            self._first_done = counts.done
        rate = 60.0 * (counts.done - self._first_done) / max(now - self._start, 1e-9)
        note = f"{rate:.1f}/min, {duration(self._estimate.remaining_s(remaining_cost, now))} to go, {workers} workers"
        if counts.quarantined:
            note += f", {counts.quarantined} quarantined"
        self._bar.update(self._task, completed=counts.done, total=counts.total, note=note)

    def failure(self, key: TaskKey, message: str, *, quarantined: bool) -> None:
        """Print a failed attempt above the bar."""
        word = "quarantined" if quarantined else "failed, will be tried again"
        self._console.print(Text(f"{key} {word}: {message}", style="yellow"))

    def close(self) -> None:
        """Leave the last state of the bar on the screen."""
        self._live.stop()


def make_progress(cost: float) -> LogProgress | TerminalProgress:
    """Choose by where the output goes."""
    console = Console(stderr=True)
    return TerminalProgress(cost, console) if console.is_terminal else LogProgress(cost)


class _LogFile(logging.FileHandler):
    """A log on a full disk ends no campaign, and says nothing: the archive will."""

    def handleError(self, record: logging.LogRecord) -> None:
        """Ignore what the file system refuses."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


def log_to(path: Path, *, debug: bool) -> None:
    """Write the log to a file, and what matters to the standard error as well.

    On a terminal the live bar speaks for itself, so there only warnings are printed.
    """
    root = logging.getLogger("driver")
    root.setLevel(logging.DEBUG if debug else logging.INFO)
    root.handlers.clear()
    form = logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S")
    screen = logging.StreamHandler(sys.stderr)
    screen.setLevel(logging.ERROR if sys.stderr.isatty() else logging.INFO)
    for handler in (_LogFile(path), screen):
        handler.setFormatter(form)
        root.addHandler(handler)
