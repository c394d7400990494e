"""Read an archive, whether or not a campaign is writing it."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, TypeVar

import h5py
import numpy as np
import numpy.typing as npt
from h5py import h5d, h5g, h5o

from driver.archive.datasets import read_structure, read_value
from driver.archive.records import (
    STAGES,
    ArchiveError,
    Header,
    LostWorker,
    MaterialRecord,
    ModelRecord,
    RefusedMaterial,
    Structure,
    TaskKey,
    TaskState,
)
from driver.archive.results import stored_items
from driver.archive.schema import (
    ROW_CHECKSUM,
    STATUS,
    TABLES,
    TABLES_SINCE_1_1,
    data_checksum,
    group_path,
    header_checksum,
    row_checksums,
)
from driver.archive.snapshot import StaleSnapshotError
from driver.archive.sources import TRIES, SnapshotSource, Source, clear_errors
from driver.archive.storage import Storage

_STATES = {"done": "done", "failed": "failed", "quarantined": "quarantined", "requeued": "failed"}

Columns = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class FailureRow:
    """One failed attempt, as `/tables/failures` has it."""

    key: TaskKey
    attempt: int
    exception: str
    message: str
    traceback: str
    quarantined: bool
    rank: int
    host: str
    device: str


_P = ParamSpec("_P")
_T = TypeVar("_T")


def _consistent(
    method: Callable[Concatenate[ArchiveView, _P], _T],
) -> Callable[Concatenate[ArchiveView, _P], _T]:
    """Let a method read again from the newest commit if the writer moved pages while it read."""

    @functools.wraps(method)
    def call(self: ArchiveView, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        with clear_errors(self.path):
            for _ in range(TRIES):
                try:
                    return method(self, *args, **kwargs)
                except Exception:
                    if not self._source.stale():
                        raise
                    self._source.reopen()
            raise StaleSnapshotError(f"{self.path} is rewritten faster than it can be read")

    return call


class ArchiveView:
    """A consistent set of committed tasks; use `open_archive` to get one.

    A context manager. While it is open, a writer goes on committing, but postpones its housekeeping.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self.path = source.path

    def __enter__(self) -> ArchiveView:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the view (not the writer that it may belong to)."""
        self._source.close()

    @property
    def header(self) -> Header:
        """Identity of the archive."""
        return self._header()

    @_consistent
    def _header(self) -> Header:
        group = self._source.h5["header"]
        return Header(
            campaign=str(group.attrs["campaign"]),
            seed=int(group.attrs["seed"]),
            config_yaml=str(read_value(group["config_yaml"].id)),
            physics=json.loads(str(read_value(group["physics"].id))),
            versions=json.loads(str(read_value(group["versions"].id))),
            format_version=str(self._source.h5.attrs["format_version"]),
            created=str(group.attrs["created"]),
        )

    @_consistent
    def header_is_intact(self) -> bool:
        """Return whether the header's checksum holds."""
        return bool(self._source.h5["header"].attrs["checksum"] == header_checksum(self.header))

    @_consistent
    def materials(self) -> dict[str, MaterialRecord]:
        """All materials by key, in the order in which they were added."""
        columns = self._columns("materials")
        folder = self._source.h5["materials"].id
        structures = (read_structure(h5g.open(folder, f"{key}/structure".encode())) for key in columns["key"])
        return {
            columns["key"][row]: material_record(columns, row, structure) for row, structure in enumerate(structures)
        }

    def material_keys(self) -> list[str]:
        """Keys of all materials, in the order in which they were added."""
        return list(self.table("materials")["key"])

    def model_keys(self) -> list[str]:
        """Keys of all models, in the order in which they were added."""
        return list(self.table("models")["key"])

    @_consistent
    def missing_structures(self) -> list[str]:
        """Keys of the materials whose structures have been dropped, so that they must be added again."""
        folder = self._source.h5["materials"].id
        return [key for key in self._keys("materials") if _lacks_structure(folder, key.encode())]

    @_consistent
    def models(self) -> dict[str, ModelRecord]:
        """All models by key, in the order in which they were added."""
        known = {field.name for field in fields(ModelRecord)}
        columns = {name: values for name, values in self._columns("models").items() if name in known}
        records = (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))
        return {record["key"]: ModelRecord(**record) for record in records}

    @_consistent
    def table(self, name: str) -> Columns:
        """Return a table as columns.

        Parameters
        ----------
        name : str
            materials, models, tasks, failures, relax, displace or dynamics.

        Returns
        -------
        dict of str to (rows,) ndarray
            Keys, stages, states and texts as object arrays of str. Of tables about tasks, only rows that have their
            checksum and stand for a task.
        """
        return self._columns(name)

    @_consistent
    def rows(self, name: str) -> npt.NDArray[Any]:
        """Return a table as it is stored: a structured array, materials and models as row numbers."""
        return self._rows(name)

    @_consistent
    def checksum(self, key: TaskKey, scalars: bytes) -> str:
        """Recompute the checksum of what a task has stored; `scalars` as in `schema.data_checksum`."""
        return data_checksum(scalars, stored_items(self._group(key.material, key.model, key.stage), key.segment))

    @_consistent
    def refused(self) -> list[RefusedMaterial]:
        """Materials that were asked for and cannot be used."""
        columns = self._columns("refused")
        return [
            RefusedMaterial(*row) for row in zip(columns["key"], columns["source"], columns["message"], strict=True)
        ]

    @_consistent
    def task_states(self) -> dict[TaskKey, TaskState]:
        """Latest state of every task that has been attempted."""
        rows = self._source.h5["tables/tasks"][()]
        rows = rows[last_of_each(rows)]  # none that is damaged
        materials, models = self._keys("materials"), self._keys("models")
        names = {number: _STATES[name] for name, number in STATUS.items()}
        stages = dict(enumerate(STAGES))
        state = functools.cache(TaskState)
        columns = (rows[name].tolist() for name in ("material", "model", "stage", "segment", "status", "attempt"))
        return {
            TaskKey(materials[material], models[model], stages[stage], segment): state(names[status], attempt)
            for material, model, stage, segment, status, attempt in zip(*columns, strict=True)
        }

    @_consistent
    def failures(self) -> list[FailureRow]:
        """All failed attempts, in the order in which they were committed."""
        columns = self._columns("failures")
        keys = zip(*(columns[name] for name in ("material", "model", "stage", "segment")), strict=True)
        names = ("attempt", "exception", "message", "traceback", "quarantined", "rank", "host", "device")
        rest = zip(*(columns[name].tolist() for name in names), strict=True)
        return [
            FailureRow(TaskKey(material, model, stage, int(segment)), *values)
            for (material, model, stage, segment), values in zip(keys, rest, strict=True)
        ]

    @_consistent
    def lost_workers(self) -> list[LostWorker]:
        """Workers that runs went on without, in the order in which they were lost."""
        columns = self._columns("lost_workers")
        names = [field.name for field in fields(LostWorker)]
        return [LostWorker(*row) for row in zip(*(columns[name].tolist() for name in names), strict=True)]

    @_consistent
    def has(self, material: str, model: str, stage: str, path: str = "") -> bool:
        """Return whether a stage of a material has stored anything, or a dataset or group of that path."""
        return f"{group_path(material, model, stage)}/{path}".rstrip("/") in self._source.h5

    @_consistent
    def read(
        self, material: str, model: str, stage: str, path: str, rows: slice | None = None
    ) -> npt.NDArray[Any] | str:
        """Return a dataset below a stage's group: an array (or some of its rows), or a text.

        Raises
        ------
        ArchiveError
            If there is none of that name; the message says which part is missing.
        """
        group = self._group(material, model, stage)
        try:
            dataset = h5d.open(group, path.encode())
        except (KeyError, ValueError) as error:
            if path.encode() in group and h5o.get_info(group, path.encode()).type == h5o.TYPE_DATASET:
                raise
            raise ArchiveError(f"{material} / {model} / {stage} has no dataset {path!r} in {self.path}") from error
        return read_value(dataset, rows)

    def read_array(
        self, material: str, model: str, stage: str, path: str, rows: slice | None = None
    ) -> npt.NDArray[Any]:
        """Return a dataset that is no text; see `read`."""
        value = self.read(material, model, stage, path, rows)
        if isinstance(value, str):
            raise ArchiveError(f"{material} / {model} / {stage}: {path!r} is a text, not an array")
        return value

    def read_text(self, material: str, model: str, stage: str, path: str) -> str:
        """Return a dataset that is a text; see `read`."""
        value = self.read(material, model, stage, path)
        if not isinstance(value, str):
            raise ArchiveError(f"{material} / {model} / {stage}: {path!r} is an array, not a text")
        return value

    @_consistent
    def group(self, material: str, model: str, stage: str) -> h5py.Group:
        """Return a stage's HDF5 group, for reading with h5py while the view is open.

        Raises
        ------
        ArchiveError
            If the stage has stored nothing.
        """
        return h5py.Group(self._group(material, model, stage))

    @_consistent
    def copy_group(self, material: str, model: str, stage: str, target: h5py.Group) -> None:
        """Copy a stage's HDF5 group, with all that is in it, into a group of another file."""
        target.copy(h5py.Group(self._group(material, model, stage)), target, name=stage)

    @_consistent
    def structure(self, material: str) -> Structure:
        """Return a material's structure as given to the campaign."""
        path = f"materials/{material}/structure"
        if path not in self._source.h5:
            raise ArchiveError(f"{self.path} has no material {material!r}")
        return read_structure(self._source.h5[path].id)

    @_consistent
    def relaxed(self, material: str, model: str) -> Structure:
        """Return a material's structure as relaxed by a model."""
        return read_structure(self._group(material, model, "relax"))

    def _group(self, material: str, model: str, stage: str) -> h5g.GroupID:
        path = group_path(material, model, stage)
        try:
            return h5g.open(self._source.h5.id, path.encode())
        except (KeyError, ValueError) as error:
            if path in self._source.h5:
                raise
            raise ArchiveError(f"{material} / {model} / {stage} is not done in {self.path}") from error

    def _keys(self, table: str) -> list[str]:
        return [key.decode() for key in self._source.h5[f"tables/{table}"].fields("key")[()]]

    def _rows(self, name: str) -> npt.NDArray[Any]:
        if name in TABLES_SINCE_1_1 and name not in self._source.h5["tables"]:
            return np.empty(0, TABLES[name])
        return np.asarray(self._source.h5[f"tables/{name}"][()])

    def _columns(self, name: str) -> Columns:
        if name not in TABLES:
            raise ArchiveError(f"the archive has no table {name!r}: it has {', '.join(TABLES)}")
        rows = self._rows(name)
        stored = rows.dtype.names or ()
        if "material" in stored:
            rows = rows[intact_rows(rows)]
        names = [column for column in stored if column != ROW_CHECKSUM]
        columns = {column: _decoded(rows[column], rows.dtype[column]) for column in names}
        if "material" in columns:
            for table in ("materials", "models"):
                keys = np.array([*self._keys(table)], dtype=object)
                columns[table[:-1]] = keys[columns[table[:-1]]] if len(rows) else np.array([], dtype=object)
        return columns


def open_archive(path: Path | str, *, storage: Storage | None = None) -> ArchiveView:
    """Open an archive for reading, also while a campaign writes it.

    Raises
    ------
    ArchiveError
        If there is no archive, or not one that this software reads; the message says why.
    """
    path = Path(path)
    with clear_errors(path):
        return ArchiveView(SnapshotSource(path, storage))


def _lacks_structure(folder: h5g.GroupID, key: bytes) -> bool:
    try:
        return key not in folder or b"structure" not in h5g.open(folder, key)
    except (KeyError, ValueError, RuntimeError):
        return False  # damaged, which is for `verify` to say


def material_record(columns: Columns, row: int, structure: Structure) -> MaterialRecord:
    """Return the record of a row of the table of materials."""
    return MaterialRecord(
        key=columns["key"][row],
        formula=columns["formula"][row],
        structure=structure,
        source=columns["source"][row],
        prototype=columns["prototype"][row],
        descriptors=json.loads(columns["descriptors"][row]),
    )


def intact_rows(rows: npt.NDArray[Any]) -> npt.NDArray[np.intp]:
    """Indices of the rows of a table about tasks that have their checksum and stand for a task.

    A damaged row says nothing for certain, so it counts as not there; `verify` reports it. A row with segment -1 stands
    for no task: a damaged one that has been dropped.
    """
    return np.flatnonzero((row_checksums(rows) == rows[ROW_CHECKSUM]) & (rows["segment"] >= 0))


def last_of_each(rows: npt.NDArray[Any]) -> npt.NDArray[np.intp]:
    """Indices of the last intact row of `/tables/tasks` for each task, in the order of their first rows."""
    intact = intact_rows(rows)
    if len(intact) == 0:
        return intact
    kept = rows[intact]
    task = kept["material"].astype(np.int64)
    for name in ("model", "stage", "segment"):
        task = task * (int(kept[name].max()) + 1) + kept[name]
    _, first, which = np.unique(task, return_index=True, return_inverse=True)
    last = np.zeros(len(first), dtype=np.intp)
    np.maximum.at(last, which, np.arange(len(kept)))
    return intact[last[np.argsort(first)]]


def _decoded(values: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Return texts and enumerated values as object arrays of str, everything else as it is."""
    names = h5py.check_enum_dtype(dtype)
    if names is not None:
        table = {number: name for name, number in names.items()}
        return np.array([table[value] for value in values.tolist()], dtype=object)
    if h5py.check_string_dtype(dtype) is not None:
        return np.array([value.decode("utf-8", "replace") for value in values.tolist()], dtype=object)
    return np.ascontiguousarray(values)
