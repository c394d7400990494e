"""Bytes of an archive that a disk returns otherwise than they were given to it."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from driver.archive.reader import ArchiveView
from driver.archive.schema import TABLES


def flip(path: Path, offset: int, bit: int = 3) -> None:
    """Change one bit of a file in place."""
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ (1 << bit)]))


def address_of(path: Path, name: str) -> int:
    """Where the object header of a group or dataset stands."""
    with h5py.File(path) as plain:
        return int(h5py.h5o.get_info(plain[name].id).addr)


def first_byte(dataset: h5py.Dataset, row: int = 0) -> int:
    """Where a row of a chunked dataset stands in the file, or a contiguous dataset."""
    if dataset.chunks is None:
        return int(dataset.id.get_offset())
    size = dataset.dtype.itemsize * int(np.prod(dataset.chunks[1:]))
    first = row - row % dataset.chunks[0]
    info = dataset.id.get_chunk_info_by_coord((first, *(0 for _ in dataset.shape[1:])))
    return int(info.byte_offset) + (row - first) * size


def everything(view: ArchiveView) -> list[object]:
    """All that a reader can get from an archive."""
    found: list[object] = [view.header, view.models(), view.failures(), list(view.task_states().items())]
    for key, record in view.materials().items():
        arrays = (record.structure.numbers, record.structure.positions, record.structure.cell)
        found.append([key, record.formula, record.descriptors, *(array.tobytes() for array in arrays)])
    for table in TABLES:
        found.append({name: list(map(str, column)) for name, column in view.table(table).items()})
    for key in view.task_states():
        if view.has(key.material, key.model, key.stage):
            items: dict[str, object] = {}
            group = view.group(key.material, key.model, key.stage)
            group.visititems(lambda name, item, items=items: items.update(_content(name, item)))
            found.append(items)
    return found


def _content(name: str, item: h5py.Group | h5py.Dataset) -> dict[str, object]:
    value = np.asarray(item[()]).tobytes() if isinstance(item, h5py.Dataset) else b""
    return {name: (value, {key: str(attribute) for key, attribute in item.attrs.items()})}
