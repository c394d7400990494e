"""Bytes of an archive that a disk returns otherwise than they were given to it."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np


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
