"""How single arrays, texts and attributes are put into HDF5, and read again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from driver.archive.records import ArchiveError, Array, Structure
from driver.archive.schema import ROWS_PER_CHUNK

SEGMENT_ROWS = "segment_rows"
"""Attribute of an appended dataset: rows per segment, so that segment s stands in rows [s r, (s + 1) r)."""
SMALL_CHUNK_BYTES, LARGE_CHUNK_BYTES = 64 * 2**10, 256 * 2**10
COMPACT_BYTES = 2048
"""Arrays up to this size are kept inside their object header."""


def write_array(group: h5py.Group, path: str, array: Array, segment: int) -> None:
    """Write one array of a task: new, or as the rows of a segment.

    Raises
    ------
    ArchiveError
        If a segment does not fit what earlier ones have written.
    """
    if array.append:
        _append(group, path, np.asarray(array.value), array.units, segment)
    elif segment == 0:
        create_dataset(group, path, array.value, array.units)
    elif path not in group or not _equal(read_value(group[path]), array.value):
        raise ArchiveError(f"{group.name}/{path} differs from what earlier segments say")


def create_dataset(group: h5py.Group, path: str, value: npt.NDArray[Any] | str, units: str = "") -> h5py.Dataset:
    """Create a dataset of fixed size from an array or a text."""
    data: Any = np.asarray(value)
    dtype = data.dtype
    if isinstance(value, str):
        data = np.bytes_(value.encode())
        dtype = h5py.string_dtype("utf-8", max(1, len(data)))
    dcpl = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    if dtype.itemsize * int(np.prod(np.shape(data))) <= COMPACT_BYTES:
        dcpl.set_layout(h5py.h5d.COMPACT)
    dataset = group.create_dataset(path, data=data, dtype=dtype, dcpl=dcpl)
    if units:
        dataset.attrs["units"] = units
    return dataset


def create_table(group: h5py.Group, name: str, dtype: np.dtype[Any]) -> h5py.Dataset:
    """Create an empty table that grows by rows."""
    return group.create_dataset(name, shape=(0,), maxshape=(None,), chunks=(ROWS_PER_CHUNK,), dtype=dtype)


def append_rows(table: h5py.Dataset, rows: npt.NDArray[Any]) -> int:
    """Append rows to a table; return the number of the first."""
    first = len(table)
    table.resize((first + len(rows),))
    table[first:] = rows
    return first


def frames_per_chunk(rows: int, row_bytes: int) -> int:
    """Rows per chunk of a dataset that grows by `rows` at a time.

    Chunks end where segments end, so that a segment touches none of an earlier one's, and hold between 64 and
    256 KiB where segments are large enough; small segments have one chunk each, up to 16 rows of few bytes excepted.
    """
    if rows * row_bytes <= LARGE_CHUNK_BYTES:
        return max(rows, min(16, SMALL_CHUNK_BYTES // max(1, row_bytes), 1 + 8192 // max(1, row_bytes)))
    largest = max(1, LARGE_CHUNK_BYTES // row_bytes)
    divisor = max(count for count in range(1, largest + 1) if rows % count == 0)
    return divisor if divisor * row_bytes >= SMALL_CHUNK_BYTES or divisor == largest else largest


def _append(group: h5py.Group, path: str, rows: npt.NDArray[Any], units: str, segment: int) -> None:
    if rows.ndim == 0 or len(rows) == 0:
        raise ArchiveError(f"{group.name}/{path}: appended arrays need at least one row")
    if segment == 0:
        chunk = frames_per_chunk(len(rows), rows[0].nbytes)
        dataset = group.create_dataset(
            path, data=rows, maxshape=(None, *rows.shape[1:]), chunks=(chunk, *rows.shape[1:]), dtype=rows.dtype
        )
        dataset.attrs[SEGMENT_ROWS] = len(rows)
        if units:
            dataset.attrs["units"] = units
        return
    if path not in group:
        raise ArchiveError(f"{group.name}/{path} appears in segment {segment} but not in the first one")
    dataset = group[path]
    expected = (int(dataset.attrs[SEGMENT_ROWS]), *dataset.shape[1:])
    if rows.shape != expected or rows.dtype != dataset.dtype:
        raise ArchiveError(
            f"{dataset.name}: segment {segment} has {rows.dtype}{list(rows.shape)}, earlier ones {dataset.dtype}"
            f"{list(expected)}"
        )
    first, last = segment * len(rows), (segment + 1) * len(rows)
    dataset.resize(max(len(dataset), last), axis=0)
    dataset[first:last] = rows


def read_value(dataset: h5py.Dataset, segment: int | None = None) -> npt.NDArray[Any] | str:
    """Return a dataset as an array or a text; of an appended one only the rows of `segment`, if that is given."""
    if h5py.check_string_dtype(dataset.dtype) is not None and dataset.shape == ():
        value = dataset[()]
        return value.decode() if isinstance(value, bytes) else str(value)
    if segment is not None and SEGMENT_ROWS in dataset.attrs:
        rows = int(dataset.attrs[SEGMENT_ROWS])
        return np.asarray(dataset[segment * rows : (segment + 1) * rows])
    return np.asarray(dataset[()])


def write_structure(group: h5py.Group, structure: Structure) -> None:
    """Write a structure's three arrays into a group."""
    create_dataset(group, "numbers", np.asarray(structure.numbers, dtype=np.int64))
    create_dataset(group, "positions", np.asarray(structure.positions, dtype=np.float64), "angstrom")
    create_dataset(group, "cell", np.asarray(structure.cell, dtype=np.float64), "angstrom")


def read_structure(group: h5py.Group) -> Structure:
    """Read a structure from the three arrays in a group."""
    return Structure(numbers=group["numbers"][()], positions=group["positions"][()], cell=group["cell"][()])


def write_attributes(group: h5py.Group, attributes: Mapping[str, Mapping[str, Any]]) -> None:
    """Set attributes of groups (made if missing) and datasets below a group."""
    for path, values in attributes.items():
        target = group[path] if path in group else group.require_group(path)
        for name, value in values.items():
            target.attrs[name] = value


def canonical_paths(group: h5py.Group) -> Iterator[tuple[str, h5py.Dataset]]:
    """Yield every dataset below a group once, under the first of its names, in ascending order of these."""
    names: dict[int, str] = {}
    for path in sorted(_dataset_paths(group.id, "")):
        address = h5py.h5o.get_info(group.id, path.encode()).addr
        names.setdefault(address, path)
    for path in names.values():
        yield path, group[path]


def _dataset_paths(group: h5py.h5g.GroupID, prefix: str) -> Iterator[str]:
    for name in group:
        path = name.decode()
        if h5py.h5o.get_info(group, name).type == h5py.h5o.TYPE_GROUP:
            yield from _dataset_paths(h5py.h5g.open(group, name), f"{prefix}{path}/")
        else:
            yield prefix + path


def _equal(stored: npt.NDArray[Any] | str, given: npt.NDArray[Any] | str) -> bool:
    if isinstance(stored, str) or isinstance(given, str):
        return isinstance(stored, str) and isinstance(given, str) and stored == given
    given = np.asarray(given)
    return stored.dtype == given.dtype and stored.shape == given.shape and stored.tobytes() == given.tobytes()
