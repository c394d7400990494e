"""How arrays, texts and attributes are put into HDF5, and read again.

This works on h5py's low-level identifiers: a campaign makes millions of small datasets, and h5py's objects cost
several times what HDF5 itself needs for one.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
from h5py import h5a, h5d, h5g, h5o, h5p, h5s, h5t

from driver.archive.records import ArchiveError, Array, Structure
from driver.archive.schema import ROWS_PER_CHUNK, TABLES, TABLES_SINCE_1_1, TEXT

SEGMENT_ROWS = "segment_rows"
"""Attribute of an appended dataset: rows per segment, so that segment s stands in rows [s r, (s + 1) r)."""
SMALL_CHUNK_BYTES, LARGE_CHUNK_BYTES = 64 * 2**10, 256 * 2**10
COMPACT_BYTES = 2048
"""Arrays up to this size are kept inside their object header."""


def write_array(group: h5g.GroupID, path: str, array: Array, segment: int) -> None:
    """Write one array of a task: new, or as the rows of a segment.

    Raises
    ------
    ArchiveError
        If a segment does not fit what earlier ones have written.
    """
    if array.append and segment == 0:
        _create_growing(group, path, array)
    elif array.append:
        _append(group, path, np.ascontiguousarray(array.value), segment)
    elif segment == 0:
        create_dataset(group, path, array.value, array.units)
    elif path.encode() not in group or not _equal(read_value(h5d.open(group, path.encode())), array.value):
        raise ArchiveError(f"{_name(group)}/{path} differs from what earlier segments say")


def create_dataset(group: h5g.GroupID, path: str, value: npt.NDArray[Any] | str, units: str = "") -> None:
    """Create a dataset of fixed size from an array or a text, and the groups on the way to it."""
    if isinstance(value, str):
        encoded = value.encode()
        data = np.array(encoded, dtype=h5py.string_dtype("utf-8", max(1, len(encoded))))
        kind = h5t.py_create(data.dtype, logical=True)
    else:
        data = np.ascontiguousarray(value).reshape(np.shape(value))
        kind = _type(data.dtype)
    properties = _compact() if data.nbytes <= COMPACT_BYTES else None
    space = h5s.create_simple(data.shape) if data.shape else h5s.create(h5s.SCALAR)
    dataset = h5d.create(group, path.encode(), kind, space, properties, _intermediate_groups())
    dataset.write(h5s.ALL, h5s.ALL, data, kind)
    if units:
        set_attribute(dataset, "units", units)


def create_table(group: h5py.Group, name: str) -> None:
    """Create an empty table of the schema, growing by rows."""
    group.create_dataset(name, shape=(0,), maxshape=(None,), chunks=(ROWS_PER_CHUNK,), dtype=TABLES[name])


def table_length(h5: h5py.File, table: str) -> int:
    """Number of rows of a table."""
    return int(h5d.open(h5.id, f"tables/{table}".encode()).shape[0])


def append_rows(h5: h5py.File, table: str, rows: npt.NDArray[Any]) -> None:
    """Append rows to a table."""
    if table in TABLES_SINCE_1_1 and table not in h5["tables"]:
        create_table(h5["tables"], table)
    dataset = h5d.open(h5.id, f"tables/{table}".encode())
    first = dataset.shape[0]
    dataset.set_extent((first + len(rows),))
    write_rows(dataset, first, rows, table_type(table))


def frames_per_chunk(rows: int, row_bytes: int) -> int:
    """Rows per chunk of a dataset that grows by `rows` at a time.

    A segment that is not larger than 256 KiB is one chunk, so that it touches nothing of an earlier one; larger ones
    are divided evenly where that gives chunks of at least 64 KiB. Rows of a few bytes share chunks of up to 8 KiB.
    """
    if rows * row_bytes <= LARGE_CHUNK_BYTES:
        return max(rows, min(16, 8192 // max(1, row_bytes)))
    largest = max(1, LARGE_CHUNK_BYTES // row_bytes)
    divisor = max(count for count in range(1, largest + 1) if rows % count == 0)
    return divisor if divisor * row_bytes >= SMALL_CHUNK_BYTES or divisor == largest else largest


def _create_growing(group: h5g.GroupID, path: str, array: Array) -> None:
    rows = np.ascontiguousarray(array.value)
    chunk = frames_per_chunk(len(rows), rows[0].nbytes)
    properties = h5p.create(h5p.DATASET_CREATE)
    properties.set_chunk((chunk, *rows.shape[1:]))
    space = h5s.create_simple(rows.shape, (h5s.UNLIMITED, *rows.shape[1:]))
    dataset = h5d.create(group, path.encode(), _type(rows.dtype), space, properties, _intermediate_groups())
    dataset.write(h5s.ALL, h5s.ALL, rows, _type(rows.dtype))
    for name, value in dataset_attributes(array).items():
        set_attribute(dataset, name, value)


def _append(group: h5g.GroupID, path: str, rows: npt.NDArray[Any], segment: int) -> None:
    if path.encode() not in group:
        raise ArchiveError(f"{_name(group)}/{path} appears in segment {segment} but not in the first one")
    dataset = h5d.open(group, path.encode())
    shape, kind = dataset.shape, _type(rows.dtype)
    first, last = segment * len(rows), (segment + 1) * len(rows)
    in_place = shape[0] == first or _segment_rows(dataset) == len(rows)
    if not in_place or shape[1:] != rows.shape[1:] or dataset.get_type() != kind:
        expected = [_segment_rows(dataset), *shape[1:]]
        raise ArchiveError(
            f"{_name(group)}/{path}: segment {segment} has {rows.dtype}{list(rows.shape)}, "
            f"earlier ones {dataset.dtype}{expected}"
        )
    if last > shape[0]:
        dataset.set_extent((last, *shape[1:]))
    write_rows(dataset, first, rows, kind)


def write_rows(dataset: h5d.DatasetID, first: int, rows: npt.NDArray[Any], kind: h5t.TypeID) -> None:
    """Write over rows of a dataset, from row `first` on."""
    space = dataset.get_space()
    space.select_hyperslab((first, *(0 for _ in rows.shape[1:])), rows.shape)
    dataset.write(h5s.create_simple(rows.shape), space, rows, kind)


def read_value(dataset: h5d.DatasetID, rows: slice | None = None) -> npt.NDArray[Any] | str:
    """Return a dataset, or some of its rows, as an array; or a text."""
    if rows is not None:
        return np.asarray(h5py.Dataset(dataset)[rows])
    data = np.empty(dataset.shape, dataset.dtype)
    dataset.read(h5s.ALL, h5s.ALL, data)
    return bytes(data[()]).decode() if data.dtype.kind == "S" and data.ndim == 0 else data


def segment_slice(dataset: h5d.DatasetID, segment: int) -> slice | None:
    """Return the rows of an appended dataset that belong to a segment; None for a dataset that does not grow."""
    if not h5a.exists(dataset, SEGMENT_ROWS.encode()):
        return None
    rows = _segment_rows(dataset)
    return slice(segment * rows, (segment + 1) * rows)


def truncate_segments(group: h5g.GroupID, segments: int) -> None:
    """Cut what grows below a group to so many segments."""
    for _, item in canonical_items(group):
        rows = segment_slice(item, segments - 1) if isinstance(item, h5d.DatasetID) else None
        if rows is not None and item.shape[0] > rows.stop:
            item.set_extent((rows.stop, *item.shape[1:]))


def set_attribute(target: h5d.DatasetID | h5g.GroupID, name: str, value: Any) -> None:
    """Set an attribute of a new object; texts are of variable length, so that h5py returns them as str."""
    if isinstance(value, str):
        data = np.array(value, dtype=TEXT)
        kind, memory = _stored_text(), _memory_type(TEXT)
    else:
        data = np.asarray(value)
        kind = memory = _type(data.dtype)
    space = h5s.create_simple(data.shape) if data.shape else h5s.create(h5s.SCALAR)
    h5a.create(target, name.encode(), kind, space).write(data, memory)


def write_attributes(group: h5g.GroupID, attributes: Mapping[str, Mapping[str, Any]]) -> None:
    """Set attributes of groups (made if missing) and datasets below a group."""
    for path, values in attributes.items():
        name = path.encode()
        target = h5o.open(group, name) if name in group else h5g.create(group, name, _intermediate_groups())
        for key, value in values.items():
            set_attribute(target, key, value)


def open_group(h5: h5py.File, path: str) -> h5g.GroupID:
    """Return a group, making it and those on the way to it if missing."""
    try:
        return h5g.open(h5.id, path.encode())
    except (KeyError, ValueError):  # the last part is missing, or an earlier one
        return h5g.create(h5.id, path.encode(), _intermediate_groups())


def link(group: h5g.GroupID, name: str, target: str) -> None:
    """Give a dataset a second name."""
    group.links.create_hard(name.encode(), group, target.encode(), lcpl=_intermediate_groups())


def write_structure(group: h5g.GroupID, structure: Structure) -> None:
    """Write a structure's three arrays into a group."""
    create_dataset(group, "numbers", np.asarray(structure.numbers, dtype=np.int64))
    create_dataset(group, "positions", np.asarray(structure.positions, dtype=np.float64), "angstrom")
    create_dataset(group, "cell", np.asarray(structure.cell, dtype=np.float64), "angstrom")


def read_structure(group: h5g.GroupID) -> Structure:
    """Read a structure from the three arrays in a group."""
    numbers, positions, cell = (
        np.asarray(read_value(h5d.open(group, name))) for name in (b"numbers", b"positions", b"cell")
    )
    return Structure(numbers=numbers, positions=positions, cell=cell)


def canonical_items(group: h5g.GroupID) -> Iterator[tuple[str, h5d.DatasetID | h5g.GroupID]]:
    """Yield every group and dataset below a group once, under the first of its names, in ascending order of these."""
    seen: set[int] = set()
    for path, address in sorted(_paths(group, "")):
        if address not in seen:
            seen.add(address)
            yield path, h5o.open(group, path.encode())


def _paths(group: h5g.GroupID, prefix: str) -> Iterator[tuple[str, int]]:
    for name in group:
        about, path = h5o.get_info(group, name), prefix + name.decode()
        yield path, int(about.addr)
        if about.type == h5o.TYPE_GROUP:
            yield from _paths(h5g.open(group, name), f"{path}/")


def dataset_attributes(array: Array) -> dict[str, Any]:
    """Attributes that the dataset of an array gets, apart from those that its result asks for."""
    units = {"units": array.units} if array.units else {}
    return {SEGMENT_ROWS: np.int64(len(array.value)), **units} if array.append else units


def read_attributes(item: h5d.DatasetID | h5g.GroupID) -> dict[str, npt.NDArray[Any] | str]:
    """Return all attributes of a group or dataset."""
    owner = h5py.Dataset(item) if isinstance(item, h5d.DatasetID) else h5py.Group(item)
    return {name: value if isinstance(value, str) else np.asarray(value) for name, value in owner.attrs.items()}


def _segment_rows(dataset: h5d.DatasetID) -> int:
    data = np.empty((), np.int64)
    h5a.open(dataset, SEGMENT_ROWS.encode()).read(data)
    return int(data)


def _equal(stored: npt.NDArray[Any] | str, given: npt.NDArray[Any] | str) -> bool:
    if isinstance(stored, str) or isinstance(given, str):
        return isinstance(stored, str) and isinstance(given, str) and stored == given
    given = np.asarray(given)
    return stored.dtype == given.dtype and stored.shape == given.shape and stored.tobytes() == given.tobytes()


def _name(group: h5g.GroupID) -> str:
    return str(h5py.Group(group).name)


@functools.cache
def _intermediate_groups() -> h5p.PropLCID:
    properties = h5p.create(h5p.LINK_CREATE)
    properties.set_create_intermediate_group(True)
    properties.set_char_encoding(h5t.CSET_UTF8)
    return properties


@functools.cache
def _compact() -> h5p.PropDCID:
    properties = h5p.create(h5p.DATASET_CREATE)
    properties.set_layout(h5d.COMPACT)
    return properties


@functools.cache
def _type(dtype: np.dtype[Any]) -> h5t.TypeID:
    return h5t.py_create(dtype, logical=True)


@functools.cache
def table_type(table: str) -> h5t.TypeID:
    """Type of a table's rows in memory."""
    return _memory_type(TABLES[table])


def _memory_type(dtype: np.dtype[Any]) -> h5t.TypeID:
    """Type of rows in memory, where a text of variable length is a Python object."""
    return h5t.py_create(dtype)


@functools.cache
def _stored_text() -> h5t.TypeID:
    return h5t.py_create(TEXT, logical=True)
