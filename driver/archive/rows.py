"""Rows of the archive's tables, made from records."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from driver.archive.records import (
    STAGES,
    ArchiveError,
    Attempt,
    LostWorker,
    MaterialRecord,
    ModelRecord,
    TaskFailure,
    TaskKey,
    TaskResult,
)
from driver.archive.schema import STATUS, TABLES, fill_row_checksums, model_fields, safe_key, scalar_columns
from driver.archive.schema import structure_checksum as checksum_of

Row = tuple[Any, ...]


def to_rows(table: str, rows: Sequence[Row]) -> npt.NDArray[Any]:
    """Return rows (without their last column) as an array of the table's type, with their checksums."""
    array = np.array([(*row, 0) for row in rows], dtype=TABLES[table])
    fill_row_checksums(array)
    return array


def material_row(record: MaterialRecord) -> Row:
    """Row of `/tables/materials`."""
    descriptors = json.dumps({name: float(value) for name, value in record.descriptors.items()})
    return (
        safe_key(record.key, "material"),
        _text(record.formula),
        _text(record.source),
        _text(record.prototype),
        descriptors,
        len(record.structure),
        checksum_of(record.structure).encode(),
    )


def model_row(record: ModelRecord) -> Row:
    """Row of `/tables/models`."""
    safe_key(record.key, "model")
    return tuple(_text(value) for value in model_fields(record))


def lost_worker_row(worker: LostWorker) -> Row:
    """Row of `/tables/lost_workers`."""
    return (worker.time_s, worker.rank, _text(worker.host), _text(worker.device), _text(worker.reason))


def task_row(attempt: Attempt, checksum: str, material: int, model: int) -> Row:
    """Row of `/tables/tasks` for a finished attempt; `material` and `model` are rows of their tables."""
    outcome = attempt.outcome
    good = isinstance(outcome, TaskResult)
    status = "done" if good else ("quarantined" if attempt.quarantined else "failed")
    evaluator, dtype = (outcome.evaluator, outcome.dtype) if isinstance(outcome, TaskResult) else ("", "")
    return (
        *_identity(attempt.key, material, model),
        STATUS[status],
        attempt.number,
        attempt.seconds,
        time.time(),
        attempt.rank,
        _cut(attempt.host, 64),
        _cut(attempt.device, 64),
        _cut(evaluator, 32),
        _cut(dtype, 16),
        checksum.encode(),
    )


def requeued_row(key: TaskKey, material: int, model: int) -> Row:
    """Row of `/tables/tasks` that gives a quarantined or dropped task its attempts back."""
    return (*_identity(key, material, model), STATUS["requeued"], 0, 0.0, time.time(), -1, b"", b"", b"", b"", b"")


def tombstone_row() -> Row:
    """Row of `/tables/tasks` that stands for no task: it takes the place of a damaged one."""
    return (0, 0, 0, -1, STATUS["requeued"], 0, 0.0, time.time(), -1, b"", b"", b"", b"", b"")


def failure_row(attempt: Attempt, failure: TaskFailure, task: int, material: int, model: int) -> Row:
    """Row of `/tables/failures`; `task` is the row of `/tables/tasks`."""
    return (
        task,
        *_identity(attempt.key, material, model),
        attempt.number,
        _text(failure.exception),
        _text(failure.message),
        _text(failure.traceback),
        attempt.quarantined,
        failure.permanent,
        attempt.rank,
        _text(attempt.host),
        _text(attempt.device),
    )


def scalar_row(result: TaskResult, task: int, material: int, model: int) -> Row:
    """Row of a stage's table; `task` is the row of `/tables/tasks`.

    Raises
    ------
    ArchiveError
        If a scalar is missing or has no column.
    """
    columns = scalar_columns(result.key.stage)
    missing, unknown = set(columns) - set(result.scalars), set(result.scalars) - set(columns)
    if missing or unknown:
        what = [f"lacks {', '.join(sorted(missing))}"] if missing else []
        what += [f"has no column for {', '.join(sorted(unknown))}"] if unknown else []
        raise ArchiveError(f"{result.key}: the result {'; '.join(what)} (table {result.key.stage})")
    return (task, material, model, result.key.segment, *(result.scalars[name] for name in columns))


def _identity(key: TaskKey, material: int, model: int) -> Row:
    return (material, model, STAGES.index(key.stage), key.segment)


def _cut(text: str, size: int) -> bytes:
    """Encode a text into at most `size` bytes, never cutting a character in half."""
    return _text(text).encode()[:size].decode(errors="ignore").encode()


def _text(text: str) -> str:
    """Return a text that HDF5 can hold: without NUL, and encodable."""
    return text.replace("\0", "\\0").encode("utf-8", "backslashreplace").decode()
