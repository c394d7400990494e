"""Results on disk that many processes need and one of them makes.

Each maker works in a folder of its own, `<name>.<token>.part`, which names it and is touched as long as it lives; the
result is renamed out of there when it is complete. So no process can spoil what another one makes, and that they take
turns only saves work: where a maker can neither be seen to live nor to be gone, the others stop waiting after a while
and make the result themselves.
"""

from __future__ import annotations

import contextlib
import functools
import glob
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from driver.archive.exclusive import ExclusiveFile, HeldError
from driver.archive.holders import Holder, judge
from driver.archive.queues import Job, JobState, job_state
from driver.errors import InterruptedRunError

POLL_S = (0.05, 2.0)
"""Between two looks: at first, and at last; a thousand processes may be waiting."""

HEARTBEAT_S = 5.0
"""A maker says so often that it lives, unless a library keeps it from that."""

ASK_AFTER_S = 60.0
"""A maker on another machine that has been silent for so long may be gone: the batch system is asked, so often."""

PATIENCE_S = 600.0
"""So long without a sign of life of the maker, and the others make the result themselves."""

_OLD_S = 24 * 3600.0
"""Folders of makers that nothing is known of are removed when they have not been touched for a day."""

_MAKER = "maker.json"

log = logging.getLogger(__name__)


def made_once(
    target: Path,
    make: Callable[[Path], None],
    *,
    stop: Callable[[], bool] | None = None,
    patience_s: float = PATIENCE_S,
    holder: Holder | None = None,
) -> Path:
    """Return a folder, made by whichever process comes first while the others wait for it.

    The folder appears under its name only when it is complete. The place of a maker that is gone is taken by another
    one, wherever that was when it died.

    Parameters
    ----------
    target : Path
        The folder.
    make : callable
        Fills the empty folder that it is given.
    stop : callable, optional
        Asked again and again while waiting for another maker; once it returns True there is no more waiting.
    patience_s : float
        How long to wait for a maker that gives no sign of life; then several may do the same work, and the first to
        finish wins.
    holder : Holder, optional
        Who makes it; default: this process.

    Raises
    ------
    InterruptedRunError
        If `stop` ended the waiting.
    """
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    maker = holder or Holder.present()
    turn = _wait_for_turn(target, maker, stop, patience_s)
    try:
        if not target.is_dir():
            _make(target, make, maker, alone=turn is not None)
    finally:
        if turn is not None:
            turn.release()
    return target


def _wait_for_turn(
    target: Path, maker: Holder, stop: Callable[[], bool] | None, patience_s: float
) -> ExclusiveFile | None:
    """Wait until the target is there, or it is this process's turn; None if it makes the target in any case."""
    lock, seen, pause = target.with_name(f"{target.name}.lock"), _SignsOfLife(), POLL_S[0]
    while not target.is_dir():
        try:
            return ExclusiveFile(lock, holder=maker, ask=seen.ask)
        except HeldError as held:
            seen.look(target, held)
        if seen.silent_s > patience_s:
            log.warning("%s: no sign of life of %s for %.0f s; making it here", target, seen.who, seen.silent_s)
            return None
        if stop is not None and stop():
            raise InterruptedRunError(f"{target} is still being made by {seen.who}; run the same command again")
        time.sleep(pause)
        pause = min(1.2 * pause, POLL_S[1])
    return None


class _SignsOfLife:
    """What a waiting process sees of the maker. Its own clock counts: those of other machines may be wrong."""

    def __init__(self) -> None:
        self.who = "another process"
        self._mark: object = None
        self._began = self._last = time.monotonic()
        self._told = False
        self._states: dict[Job, tuple[float, JobState]] = {}

    @property
    def silent_s(self) -> float:
        """How long there has been none."""
        return time.monotonic() - self._last

    def look(self, target: Path, held: HeldError) -> None:
        """Look for a sign of life of the maker, and say once who that is."""
        self.who = str(held.holder or "another process")
        touched = 0
        if held.holder is not None:
            with contextlib.suppress(OSError):
                touched = (_part(target, held.holder) / _MAKER).stat().st_mtime_ns
        mark = (held.holder.token if held.holder else "", touched)
        if mark != self._mark:
            self._mark, self._last = mark, time.monotonic()
        if not self._told:
            log.info("waiting for %s, made by %s", target, self.who)
            self._told = True

    def ask(self, job: Job) -> JobState:
        """Ask the batch system, seldom, and only about a maker that is silent."""
        now = time.monotonic()
        asked, state = self._states.get(job, (self._began, JobState(None, "")))
        if self.silent_s > ASK_AFTER_S and now - asked > ASK_AFTER_S:
            state = job_state(job)
            self._states[job] = time.monotonic(), state
        return state


def _make(target: Path, make: Callable[[Path], None], maker: Holder, *, alone: bool) -> None:
    part = _part(target, maker)
    part.mkdir()
    try:
        (part / _MAKER).write_bytes(maker.to_bytes())
        if alone:
            _remove_left(target, maker)
        made = part / "made"
        made.mkdir()
        with _heartbeat(part / _MAKER):
            make(made)
            _publish(made, target)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _part(target: Path, maker: Holder) -> Path:
    return target.with_name(f"{target.name}.{maker.token}.part")


def _publish(made: Path, target: Path) -> None:
    for path in made.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
    try:
        made.rename(target)
    except OSError:
        if not target.is_dir():  # else somebody was faster
            raise


@contextlib.contextmanager
def _heartbeat(path: Path) -> Iterator[None]:
    """Touch a file again and again, from another thread."""
    done = threading.Event()

    def beat() -> None:
        while not done.wait(HEARTBEAT_S):
            with contextlib.suppress(OSError):
                os.utime(path)

    thread = threading.Thread(target=beat, name="maker", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _remove_left(target: Path, maker: Holder) -> None:
    """Remove the folders of makers that are gone, and of unknown ones that nobody has touched for long."""
    own = _part(target, maker)
    now = (own / _MAKER).stat().st_mtime  # by the clock of the file server, as all that it is compared with
    ask = functools.cache(job_state)
    for part in target.parent.glob(f"{glob.escape(target.name)}.*.part"):
        if part != own and _is_left(part, maker, now, ask):
            shutil.rmtree(part, ignore_errors=True)


def _is_left(part: Path, maker: Holder, now: float, ask: Callable[[Job], JobState]) -> bool:
    try:
        data = (part / _MAKER).read_bytes()
    except OSError:
        data = b""
    found = Holder.parse(data)
    gone = None if found is None else judge(replace(found, locks=False), maker, ask=ask).gone
    if gone is not None:
        return gone
    try:
        return max(path.lstat().st_mtime for path in (part, *part.rglob("*"))) < now - _OLD_S
    except OSError:
        return False
