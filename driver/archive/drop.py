"""Drop what is damaged in an archive, and what builds on it, so that the next run computes it again."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
from h5py import h5d

from driver.archive.datasets import (
    append_rows,
    create_table,
    table_length,
    table_type,
    truncate_segments,
    write_rows,
)
from driver.archive.reader import last_of_each
from driver.archive.records import STAGES, ArchiveError, Attempt, TaskFailure, TaskKey
from driver.archive.rows import failure_row, requeued_row, to_rows, tombstone_row
from driver.archive.schema import ROW_CHECKSUM, STATUS, TABLES, group_path, row_checksums
from driver.archive.sources import clear_errors
from driver.archive.storage import Storage
from driver.archive.verify import Finding, verify
from driver.archive.writer import ArchiveWriter

LOST = "lost"
"""Root group of what HDF5 can neither read nor delete."""

_MENDABLE = ("tasks", "failures", "refused", *STAGES)
"""Tables of which single rows can be given up."""

_HDF5_ERRORS = (OSError, RuntimeError, ValueError, KeyError, TypeError)
"""What h5py raises on damaged files."""


@dataclass(frozen=True)
class Dropped:
    """What has been dropped.

    Attributes
    ----------
    findings : tuple of Finding
        All that was wrong.
    tasks : tuple of TaskKey
        Tasks that were done and are to be done again: the damaged ones, and those that build on them.
    structures : tuple of str
        Materials whose structures were damaged; the next run writes them again.
    remaining : tuple of Finding
        What cannot be dropped: the header, the list of materials or models.
    """

    findings: tuple[Finding, ...]
    tasks: tuple[TaskKey, ...] = ()
    structures: tuple[str, ...] = ()
    remaining: tuple[Finding, ...] = ()


def drop_damaged(
    path: Path | str,
    *,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
    storage: Storage | None = None,
) -> Dropped:
    """Find what is damaged and drop it, in one transaction.

    Damaged tasks become tasks to do again, together with those that build on them: all stages of a material and model
    if its relaxation is damaged, the later segments of a trajectory. Nothing else changes.

    Parameters
    ----------
    path, workers, progress
        See `driver.archive.verify.verify`.
    storage : Storage
        The operating system, or a stand-in.

    Raises
    ------
    ArchiveError
        If the archive cannot be opened for writing: another process writes it, or its header or lists of tasks,
        materials or models cannot be read at all.
    StorageError
        If the file system refuses.
    """
    with ArchiveWriter.open(path, storage=storage) as writer:
        findings = tuple(verify(path, workers=workers, progress=progress))
        if not findings:
            return Dropped(())
        drop = _Drop(writer, findings)
        while True:
            try:
                with clear_errors(writer.path), writer.transaction():
                    drop.carry_out()
                break
            except _UndeletableError as error:
                drop.put_aside(error.path)
        writer.reload()
        return Dropped(findings, drop.tasks, drop.structures, drop.remaining)


class _UndeletableError(Exception):
    """HDF5 can neither cut nor delete what stands at `path`, because it cannot read it."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self.path = path


class _Drop:
    """The decisions, and their execution."""

    def __init__(self, writer: ArchiveWriter, findings: Sequence[Finding]) -> None:
        self._writer = writer
        rows = {f.row for f in findings if f.table == "tasks" and f.row is not None}
        self._bad_task_rows = sorted(rows)
        self._bad_tables = {f.table for f in findings if f.table in _MENDABLE} - {"tasks"}
        self.structures = tuple(f.material for f in findings if f.material)
        self.remaining = tuple(f for f in findings if not _can_be_dropped(f))
        self._done = {key for key, state in writer.view.task_states().items() if state.status == "done"}
        self._reasons = {f.key: f.message for f in findings if f.key is not None and not f.table}
        self._kept = _standing(self._done - self._reasons.keys())
        self._aside: set[str] = set()

    @property
    def tasks(self) -> tuple[TaskKey, ...]:
        """Tasks that were done and are to be done again."""
        return tuple(sorted(self._done - self._kept, key=_order))

    def put_aside(self, path: str) -> None:
        """Do not try to delete what stands at a path; if it was to be cut only, all of it is lost."""
        self._aside.add(path)
        lost = {key for key in self._kept if group_path(key.material, key.model, key.stage) == path}
        self._reasons.update(dict.fromkeys(lost - self._reasons.keys(), "it stands beside what cannot be read"))
        self._kept = _standing(self._kept - lost)

    def carry_out(self) -> None:
        """Change the archive; to be called within a transaction."""
        h5 = self._writer.h5
        lengths = _chain_lengths(self._kept)
        for material in self.structures:
            self._discard(f"materials/{material}/structure")
        for material, model, stage in self._pairs_and_stages():
            length = lengths.get((material, model, stage), 0)
            path = group_path(material, model, stage)
            if length:
                _truncate(h5, path, length)
            else:
                self._discard(path)
        self._mend_tables(self._numbers_of_kept())
        table = h5d.open(h5.id, b"tables/tasks")
        for row in self._bad_task_rows:
            write_rows(table, row, to_rows("tasks", [tombstone_row()]), table_type("tasks"))
        self._append_tasks()

    def _discard(self, path: str) -> None:
        if not _discard(self._writer.h5, path, aside=path in self._aside):
            raise ArchiveError(f"{self._writer.path}: /materials or /tables cannot be read: go back to a copy")

    def _pairs_and_stages(self) -> list[tuple[str, str, str]]:
        """Where something stands, or may stand, that no task that is kept answers for."""
        found = {(key.material, key.model, key.stage) for key in self.tasks}
        if self._bad_task_rows:  # nobody knows whose they were
            h5, view = self._writer.h5, self._writer.view
            everywhere = ((a, b, c) for a in view.material_keys() for b in view.model_keys() for c in STAGES)
            found.update(place for place in everywhere if _stands(h5, *place))
        return sorted(found)

    def _numbers_of_kept(self) -> set[int]:
        """Rows of `/tables/tasks` that hold the results that are kept."""
        rows = self._writer.view.rows("tasks")
        latest = last_of_each(rows)
        materials, models = self._writer.view.material_keys(), self._writer.view.model_keys()
        numbers = set()
        for number in latest[rows["status"][latest] == STATUS["done"]].tolist():
            row = rows[number]
            key = TaskKey(materials[row["material"]], models[row["model"]], STAGES[row["stage"]], int(row["segment"]))
            if key in self._kept:
                numbers.add(number)
        return numbers

    def _mend_tables(self, numbers: set[int]) -> None:
        """Rewrite the tables that have rows to lose: damaged ones, and those of tasks that are not kept."""
        h5 = self._writer.h5
        for table in (*(stage for stage in STAGES if stage in TABLES), *(self._bad_tables - set(STAGES))):
            rows = _salvaged(h5, table)
            if table in STAGES:
                rows = rows[np.isin(rows["task"], sorted(numbers))]
            try:
                if len(rows) == table_length(h5, table) and table not in self._bad_tables:
                    continue
                h5[f"tables/{table}"].resize((0,))
            except _HDF5_ERRORS:
                self._discard(f"tables/{table}")
                create_table(h5["tables"], table)
            append_rows(h5, table, rows)

    def _append_tasks(self) -> None:
        """Say that the tasks are to be done again, and of the damaged ones why."""
        writer, first = self._writer, table_length(self._writer.h5, "tasks")
        requeued = [requeued_row(key, *writer.indices(key)) for key in self.tasks]
        append_rows(writer.h5, "tasks", to_rows("tasks", requeued))
        failures = []
        for number, key in enumerate(self.tasks, start=first):
            if key in self._reasons:
                outcome = TaskFailure(key, "DamagedResult", f"dropped: {self._reasons[key]}", "")
                nobody = Attempt(outcome, 0, 0.0, -1, "", "")
                failures.append(failure_row(nobody, outcome, number, *writer.indices(key)))
        append_rows(writer.h5, "failures", to_rows("failures", failures))


def _can_be_dropped(finding: Finding) -> bool:
    if finding.material or (finding.key is not None and not finding.table):
        return True
    return finding.table in _MENDABLE and (finding.table != "tasks" or finding.row is not None)


def _order(key: TaskKey) -> tuple[str, str, int, int]:
    return key.material, key.model, STAGES.index(key.stage), key.segment


def _standing(done: Iterable[TaskKey]) -> set[TaskKey]:
    """Return those of some tasks that do not build on one that is not among them."""
    standing: set[TaskKey] = set()
    for key in sorted(done, key=_order):
        before = TaskKey(key.material, key.model, key.stage, key.segment - 1)
        relax = TaskKey(key.material, key.model, "relax")
        if key == relax or (relax in standing and (key.segment == 0 or before in standing)):
            standing.add(key)
    return standing


def _chain_lengths(tasks: Iterable[TaskKey]) -> Mapping[tuple[str, str, str], int]:
    lengths: dict[tuple[str, str, str], int] = {}
    for key in tasks:
        place = (key.material, key.model, key.stage)
        lengths[place] = max(lengths.get(place, 0), key.segment + 1)
    return lengths


def _stands(h5: h5py.File, material: str, model: str, stage: str) -> bool:
    try:
        return group_path(material, model, stage) in h5
    except _HDF5_ERRORS:
        return True


def _truncate(h5: h5py.File, path: str, segments: int) -> None:
    """Cut what grows below a group to so many segments."""
    try:
        truncate_segments(h5[path].id, segments)
    except _HDF5_ERRORS as error:
        raise _UndeletableError(path) from error


def _discard(h5: h5py.File, path: str, *, aside: bool) -> bool:
    """Delete what stands at a path, which may be damaged; return whether nothing stands there now.

    With `aside`, what cannot even be deleted: the innermost readable group on the way to it is replaced by one that has
    all its other members, and the old one goes to `LOST` with what cannot be read.
    """
    parent, name = _innermost(h5, path)
    if name not in _names(parent):
        return True
    if not aside:
        try:
            del parent[name]
        except _HDF5_ERRORS as error:
            raise _UndeletableError(path) from error
        return True
    where = str(parent.name)
    if where == "/":
        return False
    lost = h5.require_group(LOST)
    grave = f"{LOST}/{len(lost)}"
    h5[grave] = parent  # a second name, so that removing the first deletes nothing
    del h5[where]
    new = h5.create_group(where)
    for other in _names(parent):
        if other != name:
            new.id.links.create_hard(other.encode(), parent.id, other.encode())
            del h5[grave][other]
    return True


def _innermost(h5: h5py.File, path: str) -> tuple[h5py.Group, str]:
    """Return the last group on the way to an object that can be opened, and the name that follows it."""
    group, parts = h5["/"], path.strip("/").split("/")
    for name in parts[:-1]:
        try:
            group = group[name]
        except _HDF5_ERRORS:
            return group, name
    return group, parts[-1]


def _names(group: h5py.Group) -> list[str]:
    return [name.decode() for name in group.id]


def _salvaged(h5: h5py.File, table: str) -> npt.NDArray[Any]:
    """Return the rows of a table that can be read and have their checksum."""
    try:
        rows = np.asarray(h5[f"tables/{table}"][()])
    except _HDF5_ERRORS:
        rows = np.concatenate([np.empty(0, TABLES[table]), *_readable_rows(h5, table)])
    return rows[row_checksums(rows) == rows[ROW_CHECKSUM]]


def _readable_rows(h5: h5py.File, table: str) -> Iterator[npt.NDArray[Any]]:
    with contextlib.suppress(*_HDF5_ERRORS):
        dataset = h5[f"tables/{table}"]
        for number in range(len(dataset)):
            with contextlib.suppress(*_HDF5_ERRORS):
                yield np.asarray(dataset[number : number + 1])
