"""Write an archive: one process, and only whole results."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType

import h5py

from driver.archive.creation import LIBVER, empty_archive, place
from driver.archive.datasets import (
    append_rows,
    create_dataset,
    open_group,
    table_length,
    table_type,
    write_rows,
    write_structure,
)
from driver.archive.identity import Difference, different_materials, different_models, refusal
from driver.archive.journal import JournaledFile
from driver.archive.lock import WriterLock
from driver.archive.reader import ArchiveView
from driver.archive.records import (
    ArchiveError,
    Attempt,
    Header,
    LostWorker,
    MaterialRecord,
    ModelRecord,
    RefusedMaterial,
    TaskKey,
    TaskResult,
    TaskState,
)
from driver.archive.results import check_result, write_result
from driver.archive.rows import (
    failure_row,
    lost_worker_row,
    material_row,
    model_row,
    requeued_row,
    scalar_row,
    task_row,
    to_rows,
)
from driver.archive.schema import header_checksum, structure_checksum
from driver.archive.sources import check_format, clear_errors, storage_error, storage_errors
from driver.archive.storage import Storage


class ArchiveWriter:
    """The one writer of an archive; a context manager. Use `create` or `open` to get one.

    Every public method that changes something is one transaction: it is durable when the method returns, and if it
    raises, nothing of it is there.
    """

    def __init__(self, path: Path, lock: WriterLock, storage: Storage) -> None:
        self.path = path
        self._lock = lock
        self._storage = storage
        with clear_errors(path), storage_errors(path):
            self._file = JournaledFile(path, storage=storage)
        try:
            with clear_errors(path):
                self.h5 = h5py.File(self._file, "r+", libver=LIBVER)
                check_format(self.h5, path, to_write=True)
            self.view = ArchiveView(_OwnSource(self))
            self.reload()
        except BaseException as error:
            failure = self._file.failure
            self._file.drop_writes(True)
            self._close_h5()
            self._file.close()
            if failure is not None:
                raise storage_error(path, failure) from error
            raise
        self._file.give_up = self._end_process
        self.leave: Callable[[int], None] = os._exit
        """Ends this process at once with an exit code; where others wait for it, in a way that they notice."""

    @classmethod
    def create(cls, path: Path | str, header: Header, *, storage: Storage | None = None) -> ArchiveWriter:
        """Create an archive: built under another name, then renamed.

        Raises
        ------
        ArchiveError
            If there is a file of that name, or another process is creating it.
        StorageError
            If the file system refuses.
        """
        path, storage = Path(path), storage or Storage()
        if path.is_symlink():  # to nothing: the archive is to be there, not here
            path = Path(os.path.realpath(path))
        with _locked(path, storage) as lock:
            if storage.exists(path):
                raise ArchiveError(f"{path} exists already: open it, or choose another name")
            with storage_errors(path):
                place(storage, path, empty_archive(header))
            return cls(path, lock, storage)

    @classmethod
    def open(cls, path: Path | str, *, storage: Storage | None = None) -> ArchiveWriter:
        """Open an archive as of its last commit, whatever happened to its last writer.

        Raises
        ------
        ArchiveError
            If there is none, it is no archive, it is of a newer format, or another process is writing it.
        StorageError
            If the file system refuses.
        """
        path, storage = Path(path), storage or Storage()
        if not storage.exists(path):
            raise ArchiveError(f"{path}: no such archive")
        with _locked(path, storage) as lock:
            return cls(path, lock, storage)

    def __enter__(self) -> ArchiveWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the archive and give up the lock. Without a reader in the way, the journal is emptied and removed."""
        if self._file.closed:
            return
        try:
            self._file.drop_writes(True)  # nothing is uncommitted
            self._close_h5()
            with storage_errors(self.path):
                self._file.close()
        finally:
            self._lock.release()

    # -- transactions ------------------------------------------------------------------------------------------------

    def add_materials(self, materials: Sequence[MaterialRecord]) -> int:
        """Add materials that are not there yet, and structures that have been dropped; return how many are new.

        Raises
        ------
        ArchiveError
            If a material is there with another structure, or its key cannot be used.
        """
        self._refuse(different_materials(self._structures, materials, self.view.structure))
        new: dict[str, MaterialRecord] = {}
        lost: list[MaterialRecord] = []
        missing = set(self.view.missing_structures())
        for record in materials:
            if record.key in missing:
                lost.append(record)
            elif record.key not in self._structures:
                first = new.setdefault(record.key, record)
                if structure_checksum(first.structure) != structure_checksum(record.structure):
                    raise ArchiveError(f"material {record.key} is given with two structures: give one another key")
        rows = to_rows("materials", [material_row(record) for record in new.values()])
        if new or lost:
            with self.transaction():
                for record in (*new.values(), *lost):
                    write_structure(open_group(self.h5, f"materials/{record.key}/structure"), record.structure)
                append_rows(self.h5, "materials", rows)
            self._load_index()
        return len(new)

    def set_refused(self, refused: Sequence[RefusedMaterial]) -> None:
        """Replace the list of materials that were asked for and cannot be used, as when a file has been mended."""
        if list(refused) == self.view.refused():
            return
        rows = to_rows("refused", [(r.key, r.source, r.message) for r in refused])
        with self.transaction():
            self.h5["tables/refused"].resize((0,))
            append_rows(self.h5, "refused", rows)

    def add_models(self, models: Sequence[ModelRecord]) -> int:
        """Add models that are not there yet; return how many.

        A model that no task has used yet takes the place of the one of the same key, as when that was a wrong file.

        Raises
        ------
        ArchiveError
            If a model is there with another sha256 or head, or its key cannot be used.
        """
        new: dict[str, ModelRecord] = {}
        replaced: dict[str, ModelRecord] = {}
        for record in models:
            stored = self._models.get(record.key)
            if stored is None:
                new.setdefault(record.key, record)
            elif different_models({record.key: stored}, [record]) and self._unused(record.key):
                replaced.setdefault(record.key, record)
        self._refuse(different_models({**new, **self._models, **replaced}, models))
        rows = to_rows("models", [model_row(record) for record in new.values()])
        if new or replaced:
            with self.transaction():
                for key, record in replaced.items():
                    row = to_rows("models", [model_row(record)])
                    write_rows(self.h5["tables/models"].id, self._model_rows[key], row, table_type("models"))
                append_rows(self.h5, "models", rows)
            self._load_index()
        return len(new)

    def commit(self, attempts: Sequence[Attempt]) -> int:
        """Store finished attempts, all in one transaction; return how many were stored.

        An attempt at a task that is done already is left out: its result is there and stays.

        Raises
        ------
        ArchiveError
            If a result does not fit the format (unknown material, missing scalar, a segment before its predecessor);
            the message names the task. Nothing is stored then.
        StorageError
            If the file system refuses; what was committed before is intact, and this writer is of no more use.
        """
        states = dict[TaskKey, TaskState]()
        kept = []
        for attempt in attempts:
            key = attempt.key
            if self._state(key, states) != "done":
                self._check(attempt, states)
                done = "quarantined" if attempt.quarantined else "failed"
                states[key] = TaskState("done" if isinstance(attempt.outcome, TaskResult) else done, attempt.number)
                kept.append(attempt)
        if kept:
            with self.transaction():
                self._store(kept)
            self._states.update(states)
        return len(kept)

    def note_lost_worker(self, worker: LostWorker) -> None:
        """Enter a worker that the run goes on without."""
        with self.transaction():
            append_rows(self.h5, "lost_workers", to_rows("lost_workers", [lost_worker_row(worker)]))

    def requeue_quarantined(self) -> list[TaskKey]:
        """Give all quarantined tasks their attempts back; return them."""
        keys = [key for key, state in self._states.items() if state.status == "quarantined"]
        if keys:
            rows = [requeued_row(key, *self.indices(key)) for key in keys]
            with self.transaction():
                append_rows(self.h5, "tasks", to_rows("tasks", rows))
            self._states.update(dict.fromkeys(keys, TaskState("failed", 0)))
        return keys

    def set_header_config(self, config_yaml: str) -> None:
        """Replace the composed configuration in the header, as when a campaign is lengthened."""
        if config_yaml != self.view.header.config_yaml:
            with self.transaction():
                group = self.h5["header"]
                del group["config_yaml"]
                create_dataset(group.id, "config_yaml", config_yaml)
                group.attrs["checksum"] = header_checksum(self.view.header)

    # -- for the modules of this package ------------------------------------------------------------------------------

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """What the block changes in `h5` becomes durable as a whole when it ends, or not at all; for this package."""
        if self._file.failure is not None:
            raise storage_error(self.path, self._file.failure)
        try:
            yield
            self.h5.flush()
            self._file.commit()
        except BaseException as error:
            self._roll_back()
            if self._file.failure is not None:
                raise storage_error(self.path, self._file.failure) from error
            raise

    @property
    def failed(self) -> bool:
        """Whether the file system has refused, so that this writer is of no more use."""
        return self._file.failure is not None

    def reload(self) -> None:
        """Take notice of what has been changed in `h5` directly."""
        self._states = self.view.task_states()
        self._load_index()

    def indices(self, key: TaskKey) -> tuple[int, int]:
        """Rows of a task's material and model in their tables.

        Raises
        ------
        ArchiveError
            If the archive does not have them.
        """
        try:
            return self._material_rows[key.material], self._model_rows[key.model]
        except KeyError as error:
            raise ArchiveError(f"{key}: {error.args[0]} is not in {self.path}; add it first") from error

    # -- inside ------------------------------------------------------------------------------------------------------

    def _refuse(self, differences: Sequence[Difference]) -> None:
        if differences:
            raise ArchiveError(refusal(self.path, differences))

    def _state(self, key: TaskKey, states: dict[TaskKey, TaskState]) -> str:
        state = states.get(key) or self._states.get(key)
        return state.status if state else ""

    def _unused(self, model: str) -> bool:
        """Tell whether no attempt at any task of a model is stored."""
        return not any(key.model == model for key in self._states)

    def _check(self, attempt: Attempt, states: dict[TaskKey, TaskState]) -> None:
        key = attempt.key
        self.indices(key)
        if isinstance(attempt.outcome, TaskResult):
            check_result(attempt.outcome)
            before = TaskKey(key.material, key.model, key.stage, key.segment - 1)
            if key.segment > 0 and self._state(before, states) != "done":
                raise ArchiveError(f"{key}: its predecessor is not done, so it cannot be stored")

    def _store(self, attempts: Sequence[Attempt]) -> None:
        tasks, first = [], table_length(self.h5, "tasks")
        others: dict[str, list[tuple[object, ...]]] = {}
        for number, attempt in enumerate(attempts, start=first):
            key, outcome = attempt.key, attempt.outcome
            indices, checksum = self.indices(key), ""
            if isinstance(outcome, TaskResult):
                row = scalar_row(outcome, number, *indices)
                checksum = write_result(self.h5, outcome, to_rows(key.stage, [row]))
                others.setdefault(key.stage, []).append(row)
            else:
                others.setdefault("failures", []).append(failure_row(attempt, outcome, number, *indices))
            tasks.append(task_row(attempt, checksum, *indices))
        append_rows(self.h5, "tasks", to_rows("tasks", tasks))
        for table, rows in others.items():
            append_rows(self.h5, table, to_rows(table, rows))

    def _roll_back(self) -> None:
        """Return to the last commit: HDF5 is closed without a trace and opened again."""
        self._file.drop_writes(True)
        self._close_h5()
        self._file.drop_writes(False)
        with contextlib.suppress(OSError):
            self._file.rollback()
        broken = self._file.failure is not None
        self.h5 = h5py.File(self._file, "r" if broken else "r+", libver=LIBVER)

    def _end_process(self, error: OSError) -> None:
        """End this process here and now: HDF5 does not survive a file that it cannot read back while it writes.

        The archive needs no parting: it is as of the last commit. 75 is the exit code of an interrupted run.
        """
        print(f"latdyn: {storage_error(self.path, error)}", file=sys.stderr, flush=True)
        self.leave(75)

    def _close_h5(self) -> None:
        with contextlib.suppress(AttributeError, OSError, RuntimeError):
            self.h5.close()

    def _load_index(self) -> None:
        materials = self.view.table("materials")
        self._structures: dict[str, str] = dict(zip(materials["key"], materials["checksum"], strict=True))
        self._models = self.view.models()
        self._material_rows = {key: row for row, key in enumerate(self._structures)}
        self._model_rows = {key: row for row, key in enumerate(self._models)}


class _OwnSource:
    """The writer's own file as a view sees it."""

    def __init__(self, writer: ArchiveWriter) -> None:
        self._writer = writer

    @property
    def path(self) -> Path:
        return self._writer.path

    @property
    def h5(self) -> h5py.File:
        return self._writer.h5

    def stale(self) -> bool:
        """The writer reads what it wrote."""
        return False

    def reopen(self) -> None:
        """Nothing to do: the writer reopens its file itself."""

    def close(self) -> None:
        """Nothing to do: the file belongs to the writer."""


@contextlib.contextmanager
def _locked(path: Path, storage: Storage) -> Iterator[WriterLock]:
    """Hold the writer's lock; it is kept unless the block raises."""
    with clear_errors(path), storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = WriterLock(path, storage=storage)
    try:
        yield lock
    except BaseException:
        lock.release()
        raise
