"""Put the result of a task into its group, and get the checksum of what stands there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
from h5py import h5d, h5g

from driver.archive.datasets import (
    canonical_items,
    dataset_attributes,
    link,
    open_group,
    read_attributes,
    read_value,
    segment_slice,
    write_array,
    write_attributes,
)
from driver.archive.records import STAGES, ArchiveError, Array, TaskResult
from driver.archive.rows import scalar_row
from driver.archive.schema import data_checksum, group_path, safe_path, scalar_bytes

Item = npt.NDArray[Any] | str

_KINDS = "biufS"
"""Kinds of numpy types that can be stored: numbers, bool, bytes."""


def check_result(result: TaskResult) -> None:
    """Raise `ArchiveError`, which names the task, unless a result fits the format."""
    key = result.key
    if key.stage not in STAGES or key.segment < 0:
        raise ArchiveError(f"{key}: no such task")
    scalar_row(result, 0, 0, 0)
    paths = set(result.arrays) | set(result.links)
    if len(paths) < len(result.arrays) + len(result.links):
        raise ArchiveError(f"{key}: a dataset and a link have the same path")
    for path, array in result.arrays.items():
        safe_path(path)
        if any(path.startswith(f"{other}/") for other in paths):
            raise ArchiveError(f"{key}: {path!r} lies below another dataset")
        _check_array(f"{key}: {path}", array)
    for path, values in result.attributes.items():
        for part in path.split("/"):
            safe_path(part)
        for name, value in values.items():
            if not isinstance(value, str) and np.asarray(value).dtype.kind not in _KINDS:
                raise ArchiveError(f"{key}: attribute {name!r} of {path!r} cannot be stored")
    for path, target in result.links.items():
        safe_path(path)
        if target not in result.arrays:
            raise ArchiveError(f"{key}: link {path!r} names {target!r}, which is no dataset of the result")


def write_result(h5: h5py.File, result: TaskResult, row: npt.NDArray[Any]) -> str:
    """Write a result's arrays, links and attributes; return the checksum over these arrays and the scalars.

    Parameters
    ----------
    h5 : h5py.File
    result : TaskResult
    row : (1,) structured array
        Its row of the stage's table.
    """
    key = result.key
    path = group_path(key.material, key.model, key.stage)
    if key.segment == 0 and path in h5:
        del h5[path]
    group = open_group(h5, path)
    for name, array in result.arrays.items():
        write_array(group, name, array, key.segment)
    if key.segment == 0:
        for name, target in result.links.items():
            link(group, name, target)
        write_attributes(group, result.attributes)
    return data_checksum(scalar_bytes(row, key.stage), _given_items(result))


def stored_items(group: h5g.GroupID, segment: int) -> Iterator[tuple[str, Item]]:
    """Yield what a task has stored, name by name, as it enters the checksum.

    The first segment answers for attributes and for the datasets that do not grow; every segment for its own rows.
    """
    for path, item in canonical_items(group):
        if isinstance(item, h5d.DatasetID):
            rows = segment_slice(item, segment)
            if segment == 0 or rows is not None:
                yield path, read_value(item, rows)
        if segment == 0:
            attributes = read_attributes(item)
            for name in sorted(attributes):
                yield f"{path}@{name}", attributes[name]


def _given_items(result: TaskResult) -> Iterator[tuple[str, Item]]:
    """Yield what `stored_items` will find."""
    first_names = {path: path for path in result.arrays}
    for path, target in result.links.items():
        first_names[target] = min(first_names[target], path)
    attributes: dict[str, dict[str, Any]] = {}
    for path, values in result.attributes.items():
        attributes.setdefault(first_names.get(path, result.links.get(path, path)), {}).update(values)
    arrays = {first_names[path]: array for path, array in result.arrays.items()}
    for path in sorted({*arrays, *attributes}):
        own = attributes.get(path, {})
        if path in arrays:
            array = arrays[path]
            own = {**own, **dataset_attributes(array)}
            if result.key.segment == 0 or array.append:
                yield path, array.value if isinstance(array.value, str) else np.asarray(array.value)
        if result.key.segment == 0:
            for name in sorted(own):
                yield f"{path}@{name}", own[name] if isinstance(own[name], str) else np.asarray(own[name])


def _check_array(name: str, array: Array) -> None:
    if isinstance(array.value, str):
        if array.append or "\0" in array.value:
            raise ArchiveError(f"{name}: a text cannot be appended, or hold NUL")
        return
    value = np.asarray(array.value)
    if value.dtype.kind not in _KINDS or value.dtype.byteorder == ">":
        raise ArchiveError(f"{name}: {value.dtype} cannot be stored")
    if array.append and (value.ndim == 0 or len(value) == 0):
        raise ArchiveError(f"{name}: appended arrays need at least one row")
