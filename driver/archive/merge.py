"""Make one archive of several of the same campaign, as from different machines."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from driver.archive.datasets import append_rows, open_group, table_length, truncate_segments
from driver.archive.journal import journal_path
from driver.archive.lineage import Choice, Pair, by_pair, choose, task_order
from driver.archive.lock import WriterLock
from driver.archive.merge_source import MergeSource, merged_header, merged_materials, merged_models, merged_refused
from driver.archive.protection import OutputError, check_new_archive, is_archive, output_errors
from driver.archive.reader import open_archive
from driver.archive.records import ArchiveError, TaskKey
from driver.archive.results import stored_items
from driver.archive.schema import STATUS, TABLES, data_checksum, fill_row_checksums, group_path, scalar_bytes
from driver.archive.storage import Storage
from driver.archive.writer import ArchiveWriter

_HDF5_ERRORS = (OSError, RuntimeError, ValueError, KeyError, TypeError)
"""What h5py raises on damaged files."""


@dataclass(frozen=True)
class Merged:
    """What a merge has put together.

    Attributes
    ----------
    tasks, failed, quarantined : int
        Done tasks; tasks that failed and may be tried again; tasks that were given up.
    differing : tuple of TaskKey
        Tasks with results in several archives that are not equal; one was taken.
    left_out : tuple of TaskKey
        Tasks done somewhere, but building on a relaxation or trajectory that was not taken: the next run does them.
    damaged : tuple of (Path, TaskKey)
        Results that were not taken because they do not have their checksum, and those that build on them.
    """

    tasks: int
    failed: int
    quarantined: int
    differing: tuple[TaskKey, ...]
    left_out: tuple[TaskKey, ...]
    damaged: tuple[tuple[Path, TaskKey], ...]


class _DamagedError(Exception):
    """Results of one archive that cannot be taken."""

    def __init__(self, source: int, keys: Sequence[TaskKey]) -> None:
        super().__init__(f"archive {source}: {keys}")
        self.source = source
        self.keys = tuple(keys)


class _LateStorage(Storage):
    """Does not wait for the disk: an unfinished merge is worth nothing."""

    def sync(self, descriptor: int) -> None:
        """Leave it to the end."""

    def sync_directory(self, directory: Path) -> None:
        """Leave it to the end."""


def merge(
    sources: Sequence[Path | str],
    target: Path | str,
    *,
    progress: Callable[[int, int], None] | None = None,
    storage: Storage | None = None,
) -> Merged:
    """Merge archives of one campaign into a new one; they are only read, and may be written meanwhile.

    What is done in any of them is done in the merged one, as far as it fits together (see `driver.archive.lineage`);
    failed attempts are kept. Every checksum is recomputed on the way; damaged results are left out.

    Parameters
    ----------
    sources : sequence of Path
        In order of preference: the first gives name and configuration, and its results are taken where others are
        as good.
    target : Path
        Appears whole, or not at all.
    progress : callable
        Called with the number of pairs of a material and a model that are merged, and of all.
    storage : Storage
        The operating system, or a stand-in, for the target.

    Raises
    ------
    ArchiveError
        If the archives are not of one campaign (the message names the settings, materials or models that differ), one
        cannot be read, or the target exists.
    StorageError
        If the file system refuses.
    """
    target, storage = Path(target), storage or _LateStorage()
    check_new_archive(target)
    paths = [Path(path) for path in sources]
    if len({path.resolve() for path in paths}) < len(paths):
        raise ArchiveError("an archive is named twice")
    with contextlib.ExitStack() as stack:
        stack.enter_context(output_errors(target))
        opened = [MergeSource(stack.enter_context(open_archive(path))) for path in paths]
        header = merged_header(opened)
        part = target.with_name(target.name + ".part")
        _clear(part, storage)
        stack.callback(_remove, part, storage)
        with ArchiveWriter.create(part, header, storage=storage) as writer:
            writer.add_materials(merged_materials(opened))
            writer.add_models(merged_models(opened))
            writer.set_refused(merged_refused(opened))
            merged = _Merge(writer, opened).run(progress)
        _publish(part, target, storage)
    return merged


class _Merge:
    """The work, one material and model at a time, each a transaction."""

    def __init__(self, writer: ArchiveWriter, sources: Sequence[MergeSource]) -> None:
        self._writer = writer
        self._sources = sources
        self._done = [by_pair(source.checksums) for source in sources]
        self._differing: list[TaskKey] = []
        self._left_out: list[TaskKey] = []
        self._damaged: list[tuple[Path, TaskKey]] = []

    def run(self, progress: Callable[[int, int], None] | None) -> Merged:
        """Merge everything; return what came of it."""
        keys = [by_pair(dict.fromkeys(source.attempts, "")) for source in self._sources]
        pairs = list(dict.fromkeys(pair for source in keys for pair in source))
        for number, pair in enumerate(pairs, start=1):
            attempted = {key for source in keys for key in source.get(pair, ())}
            choice = self._merge_pair(pair, task_order(attempted))
            self._differing += task_order(choice.differing)
            self._left_out += task_order(choice.left_out)
            if progress is not None:
                progress(number, len(pairs))
        self._writer.reload()
        states = [state.status for state in self._writer.view.task_states().values()]
        return Merged(
            tasks=states.count("done"),
            failed=states.count("failed"),
            quarantined=states.count("quarantined"),
            differing=tuple(self._differing),
            left_out=tuple(self._left_out),
            damaged=tuple(self._damaged),
        )

    def _merge_pair(self, pair: Pair, attempted: Sequence[TaskKey]) -> Choice:
        while True:
            choice = choose(*pair, [done.get(pair, {}) for done in self._done])
            try:
                with self._writer.transaction():
                    self._copy_arrays(choice)
                    self._copy_rows(choice, attempted)
                return choice
            except _DamagedError as error:
                done = self._done[error.source][pair]
                for key in error.keys:
                    del done[key]
                    self._damaged.append((self._sources[error.source].path, key))

    def _copy_arrays(self, choice: Choice) -> None:
        stages: dict[str, list[TaskKey]] = {}
        for key in choice.source:
            stages.setdefault(key.stage, []).append(key)
        for keys in stages.values():
            number = choice.source[keys[0]]  # a trajectory comes from one archive
            first, source = keys[0], self._sources[number]
            try:
                parent = open_group(self._writer.h5, f"materials/{first.material}/{first.model}")
                source.view.copy_group(first.material, first.model, first.stage, h5py.Group(parent))
                group = open_group(self._writer.h5, group_path(first.material, first.model, first.stage))
                truncate_segments(group, len(keys))
            except (*_HDF5_ERRORS, ArchiveError) as error:
                if self._writer.failed:
                    raise
                raise _DamagedError(number, keys) from error
            for key in keys:
                row = source.scalars.get(key)
                if row is None or not _has_checksum(group, key, row, source.checksums[key]):
                    raise _DamagedError(number, [other for other in keys if other.segment >= key.segment])

    def _copy_rows(self, choice: Choice, attempted: Sequence[TaskKey]) -> None:
        h5 = self._writer.h5
        number = table_length(h5, "tasks")
        rows: dict[str, list[npt.NDArray[Any]]] = {"tasks": []}
        for key in attempted:
            for source, row in self._rows_of(key, choice):
                indices = self._writer.indices(key)
                rows["tasks"].append(_placed(source.tasks[row], indices))
                if row in source.failures:
                    rows.setdefault("failures", []).append(_placed(source.failures[row], indices, number))
                if source.tasks["status"][row] == STATUS["done"]:
                    rows.setdefault(key.stage, []).append(_placed(source.scalars[key], indices, number))
                number += 1
        for table, parts in rows.items():
            merged = np.concatenate([np.empty(0, TABLES[table]), *parts])
            fill_row_checksums(merged)
            append_rows(h5, table, merged)

    def _rows_of(self, key: TaskKey, choice: Choice) -> Iterator[tuple[MergeSource, int]]:
        """Yield a task's attempts, each once, so that the last one says how the task stands."""
        taken = choice.source.get(key)
        seen: set[bytes] = set()
        rank = {"failed": 0, "quarantined": 1}
        numbers = [n for n, source in enumerate(self._sources) if key in source.attempts]
        for number in sorted(numbers, key=lambda n: (n == taken, rank.get(self._sources[n].states[key].status, 0))):
            source = self._sources[number]
            for row in source.attempts[key]:
                if source.tasks["status"][row] == STATUS["done"]:
                    if number == taken and row == source.attempts[key][-1]:
                        yield source, row
                    continue
                known = source.attempt_bytes(row)
                if known not in seen:
                    seen.add(known)
                    yield source, row


def _has_checksum(group: Any, key: TaskKey, row: npt.NDArray[Any], checksum: str) -> bool:
    try:
        return data_checksum(scalar_bytes(row, key.stage), stored_items(group, key.segment)) == checksum
    except _HDF5_ERRORS:
        return False


def _placed(row: npt.NDArray[Any], indices: tuple[int, int], task: int | None = None) -> npt.NDArray[Any]:
    """Return a copy of a row that refers to the merged tables."""
    placed = np.array(row).reshape(1)
    placed["material"], placed["model"] = indices
    if task is not None:
        placed["task"] = task
    return placed


def _clear(part: Path, storage: Storage) -> None:
    """Remove what an interrupted merge has left, unless it is still going on, or is something else."""
    part.parent.mkdir(parents=True, exist_ok=True)
    marks = (journal_path(part), part.with_name(part.name + ".lock"))
    if os.path.lexists(part) and not (is_archive(part) or any(map(os.path.lexists, marks))):
        raise OutputError(f"{part} is in the way, and no merge has left it: move it away, or choose another name")
    lock = WriterLock(part, storage=storage)
    try:
        _remove(part, storage)
    finally:
        lock.release()


def _remove(part: Path, storage: Storage) -> None:
    storage.remove(part)
    storage.remove(journal_path(part))


def _publish(part: Path, target: Path, storage: Storage) -> None:
    durable = Storage()
    descriptor = storage.open(part, write=True)
    try:
        durable.sync(descriptor)
    finally:
        storage.close(descriptor)
    check_new_archive(target)  # something may have appeared meanwhile
    storage.replace(part, target)
    durable.sync_directory(target.parent)
