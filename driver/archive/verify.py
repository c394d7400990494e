"""Recompute every checksum of an archive and name what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np

from driver.archive.processes import in_processes
from driver.archive.reader import ArchiveView, intact_rows, last_of_each, open_archive
from driver.archive.records import STAGES, ArchiveError, TaskKey
from driver.archive.schema import (
    ROW_CHECKSUM,
    STATUS,
    TABLES,
    row_checksums,
    scalar_bytes,
    structure_checksum,
)
from driver.archive.sources import UnreadableError

_T = TypeVar("_T")

BATCH = 64
"""Tasks per unit of parallel work and of progress."""
MAX_WORKERS = 16
"""More processes wait for the file system only."""


@dataclass(frozen=True)
class Finding:
    """Something wrong in an archive.

    Attributes
    ----------
    where : str
        The place: a task, or a row of a table.
    message : str
    key : TaskKey or None
        The task concerned, if it is one.
    table : str
        The table concerned, if it is one; `row` is the number of its row, or None for the whole table.
    row : int or None
    material : str
        The material whose structure is concerned, if it is one.
    """

    where: str
    message: str
    key: TaskKey | None = None
    table: str = ""
    row: int | None = None
    material: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.message}"


@dataclass(frozen=True)
class StoredTask:
    """What a done task claims: its checksum, and the packed scalars that enter it."""

    key: TaskKey
    checksum: str
    scalars: bytes


def verify(path: Path | str, *, workers: int = 1, progress: Callable[[int, int], None] | None = None) -> list[Finding]:
    """Check all committed tasks and tables, also while a campaign writes.

    Parameters
    ----------
    path : Path
    workers : int
        Processes that read arrays, at most `MAX_WORKERS`; 1 reads in this process.
    progress : callable
        Called with the number of tasks checked, and of all.

    Returns
    -------
    list of Finding
        Empty if every checksum holds.

    Raises
    ------
    ArchiveError
        If the archive cannot be opened at all.
    """
    with open_archive(path) as view:
        findings = check_frame(view)
        stored, more = stored_tasks(view)
        findings += more
        batches = [stored[start : start + BATCH] for start in range(0, len(stored), BATCH)]
        done = 0
        for batch, found in _check_batches(view, batches, workers):
            findings += found
            done += len(batch)
            if progress is not None:
                progress(done, len(stored))
    return findings


def _check_batches(
    view: ArchiveView, batches: Sequence[Sequence[StoredTask]], workers: int
) -> Iterator[tuple[Sequence[StoredTask], list[Finding]]]:
    if workers <= 1 or len(batches) <= 1:
        for batch in batches:
            yield batch, check_tasks(view, batch)
        return
    calls = [(view.path, batch) for batch in batches]
    yield from zip(batches, in_processes(_check_apart, calls, min(workers, MAX_WORKERS)), strict=True)


def _check_apart(path: Path, tasks: Sequence[StoredTask]) -> list[Finding]:
    with open_archive(path) as view:
        return check_tasks(view, tasks)


def check_frame(view: ArchiveView) -> list[Finding]:
    """Return what is wrong in all that is no task's result: header, tables, structures."""
    return [*_check_header(view), *_check_tables(view), *_check_structures(view)]


def check_tasks(view: ArchiveView, tasks: Sequence[StoredTask]) -> list[Finding]:
    """Recompute the checksums of some done tasks; return what is wrong with them."""
    findings = []
    for task in tasks:
        checksum = _attempt(str(task.key), partial(view.checksum, task.key, task.scalars), task.key)
        if isinstance(checksum, Finding):
            findings.append(checksum)
        elif checksum != task.checksum:
            findings.append(Finding(str(task.key), "what is stored does not have its checksum", task.key))
    return findings


def _check_header(view: ArchiveView) -> Iterator[Finding]:
    intact = _attempt("header", view.header_is_intact)
    if isinstance(intact, Finding):
        yield intact
    elif not intact:
        yield Finding("header", "it does not have its checksum")


def _check_tables(view: ArchiveView) -> Iterator[Finding]:
    materials, models = _keys(view, "materials"), _keys(view, "models")
    for table in TABLES:
        rows = _attempt(f"/tables/{table}", partial(view.rows, table))
        sums = _attempt(f"/tables/{table}", partial(row_checksums, rows)) if isinstance(rows, np.ndarray) else rows
        if isinstance(rows, Finding):
            yield replace(rows, table=table)
            continue
        if isinstance(sums, Finding):
            yield replace(sums, table=table)
            continue
        for number in np.flatnonzero(sums != rows[ROW_CHECKSUM]).tolist():
            key = _key_of(rows[number], table, materials, models)
            where = f"/tables/{table} row {number}" + (f" ({key})" if key else "")
            yield Finding(where, "it does not have its checksum", key, table, number)


def _check_structures(view: ArchiveView) -> Iterator[Finding]:
    columns = _attempt("/tables/materials", partial(view.table, "materials"))
    if isinstance(columns, Finding):
        return  # reported with the tables
    for material, expected in zip(columns["key"], columns["checksum"], strict=True):
        where = f"{material} / structure"
        structure = _attempt(where, partial(view.structure, material))
        if isinstance(structure, Finding):
            yield replace(structure, material=material)
        elif structure_checksum(structure) != expected:
            yield Finding(where, "it does not have its checksum", material=material)


def stored_tasks(view: ArchiveView) -> tuple[list[StoredTask], list[Finding]]:
    """Return what every done task claims to have stored, and what keeps others from being checked."""
    found = _attempt("/tables/tasks", partial(_stored_tasks, view))
    return ([], [found]) if isinstance(found, Finding) else found


def _stored_tasks(view: ArchiveView) -> tuple[list[StoredTask], list[Finding]]:
    tasks = view.rows("tasks")
    latest = last_of_each(tasks)
    latest = latest[tasks["status"][latest] == STATUS["done"]]
    materials, models = _keys(view, "materials"), _keys(view, "models")
    stored: list[StoredTask] = []
    findings: list[Finding] = []
    for stage in (name for name in STAGES if name in TABLES):
        rows = _attempt(f"/tables/{stage}", partial(view.rows, stage))
        row_of = {} if isinstance(rows, Finding) else {int(rows["task"][row]): row for row in intact_rows(rows)}
        for task in latest[tasks["stage"][latest] == STAGES.index(stage)].tolist():
            key = _key_of(tasks[task], "tasks", materials, models)
            row = row_of.get(task)
            if key is None:
                what = "it names no material and model of the archive"
                findings.append(Finding(f"/tables/tasks row {task}", what, table="tasks", row=task))
            elif isinstance(rows, Finding) or row is None:
                findings.append(Finding(str(key), f"/tables/{stage} has no row for it", key))
            else:
                checksum = bytes(tasks["checksum"][task]).decode("ascii", "replace")
                stored.append(StoredTask(key, checksum, scalar_bytes(rows[row : row + 1], stage)))
    return stored, findings


def _key_of(row: np.void, table: str, materials: Sequence[str], models: Sequence[str]) -> TaskKey | None:
    if "material" not in (row.dtype.names or ()):
        return None
    material, model = int(row["material"]), int(row["model"])
    stage = int(row["stage"]) if "stage" in (row.dtype.names or ()) else STAGES.index(table)
    if not (0 <= material < len(materials) and 0 <= model < len(models) and stage < len(STAGES)):
        return None
    return TaskKey(materials[material], models[model], STAGES[stage], int(row["segment"]))


def _keys(view: ArchiveView, table: str) -> list[str]:
    try:
        return [str(key) for key in view.table(table)["key"]]
    except ArchiveError:
        return []  # reported with the tables


def _attempt(where: str, read: Callable[[], _T], key: TaskKey | None = None) -> _T | Finding:
    """Return what `read` gives; damaged HDF5 may raise anything, which becomes a finding."""
    try:
        return read()
    except Exception as error:
        reason = error.reason if isinstance(error, UnreadableError) else str(error)
        return Finding(where, f"it cannot be read ({reason.splitlines()[0] if reason else repr(error)})", key)
