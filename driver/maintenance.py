"""The commands `verify` and `merge`: whether an archive is intact, what to do if not, and one archive of several."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from driver.archive.drop import Dropped, drop_damaged
from driver.archive.merge import merge
from driver.archive.reader import open_archive
from driver.archive.records import ArchiveError, TaskKey
from driver.archive.sources import UnreadableError
from driver.archive.verify import verify
from driver.errors import InterruptedRunError

_SHOWN = 10


def print_verification(archive: Path, *, drop: bool = False) -> int:
    """Recompute every checksum and print what is wrong; with `drop` also give up what is damaged.

    Returns
    -------
    int
        1 if anything is wrong, with `drop` if anything is left that is wrong.

    Raises
    ------
    ArchiveError
        If there is no archive, it cannot be opened at all, or (with `drop`) a campaign is writing it.
    InterruptedRunError
        If Ctrl-C was pressed.
    """
    workers = os.cpu_count() or 1
    try:
        with _interruptible(), _progress("checking", "tasks") as update:
            with open_archive(archive) as view:
                done = sum(state.status == "done" for state in view.task_states().values())
            if drop:
                dropped = drop_damaged(archive, workers=workers, progress=update)
            else:
                dropped = Dropped(tuple(verify(archive, workers=workers, progress=update)))
    except UnreadableError as error:
        raise ArchiveError(f"{error.reason}; nothing of it can be checked: go back to a copy") from error
    for finding in dropped.findings:
        print(finding)
    print(f"{archive}: {done} tasks checked, {_count(len(dropped.findings), 'thing')} wrong")
    if not drop:
        if dropped.findings:
            print("`verify --drop` gives up what is damaged and what builds on it, so that the next run does it again")
        return 1 if dropped.findings else 0
    _print_dropped(dropped)
    return 1 if dropped.remaining else 0


def _print_dropped(dropped: Dropped) -> None:
    for key in dropped.tasks:
        print(f"dropped {key}")
    if dropped.findings:
        print(f"{_count(len(dropped.tasks), 'task')} dropped, for the next run to do again")
    if dropped.structures:
        print(f"structures for the next run to write again: {', '.join(dropped.structures)}")
    for finding in dropped.remaining:
        print(f"this cannot be computed again: {finding}; go back to a copy of the archive")


def print_merge(archives: Sequence[Path], output: Path) -> int:
    """Merge archives of one campaign into a new one and print what came of it.

    Raises
    ------
    ArchiveError
        See `driver.archive.merge.merge`.
    InterruptedRunError
        If Ctrl-C was pressed.
    """
    with _interruptible(), _progress("merging", "materials x models") as update:
        merged = merge(archives, output, progress=update)
    print(
        f"{output}: {merged.tasks} tasks done, {merged.failed} to retry, {merged.quarantined} quarantined,"
        f" from {len(archives)} archives"
    )
    _print_tasks(merged.differing, "done more than once with results that are not equal; one is taken")
    _print_tasks(merged.left_out, "left out, because they build on a relaxation or trajectory that is not taken")
    for path, key in merged.damaged:
        print(f"damaged in {path}, left out: {key}")
    return 0


def _print_tasks(keys: Sequence[TaskKey], what: str) -> None:
    if keys:
        shown = "; ".join(map(str, keys[:_SHOWN])) + ("; ..." if len(keys) > _SHOWN else "")
        print(f"{_count(len(keys), 'task')} {what}: {shown}")


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Turn Ctrl-C into an error of one line."""
    try:
        yield
    except KeyboardInterrupt:
        raise InterruptedRunError("ended by Ctrl-C; the same command begins anew") from None


@contextlib.contextmanager
def _progress(verb: str, unit: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on a terminal, nothing elsewhere; yield what moves it."""
    columns = (TextColumn(verb), BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeRemainingColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(verb, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
