"""How an archive comes into being: built in memory, written under another name, renamed."""

from __future__ import annotations

import contextlib
import io
import json
import time
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np

from driver.archive.datasets import create_dataset, create_table
from driver.archive.journal import journal_path
from driver.archive.records import Header
from driver.archive.schema import FORMAT, FORMAT_VERSION, TABLES, header_checksum
from driver.archive.storage import Storage

SUPERBLOCK = ("v108", "latest")
"""A superblock that has no mark of an open writer: such a mark would keep readers out after a crash."""
LIBVER = ("v110", "latest")
"""What else is in the file: chunk indices of HDF5 1.10, small and with checksums."""


def empty_archive(header: Header) -> bytes:
    """Return the bytes of an archive that has a header and no rows."""
    created = header.created or time.strftime("%Y-%m-%dT%H:%M:%S%z")
    header = replace(header, format_version=FORMAT_VERSION, created=created)
    image = io.BytesIO()
    with h5py.File(image, "w", libver=SUPERBLOCK) as h5:
        h5.attrs["format"] = FORMAT
        h5.attrs["format_version"] = FORMAT_VERSION
    with h5py.File(image, "r+", libver=LIBVER) as h5:
        group = h5.create_group("header")
        group.attrs["campaign"] = header.campaign
        group.attrs["seed"] = np.int64(header.seed)
        group.attrs["created"] = header.created
        group.attrs["checksum"] = header_checksum(header)
        create_dataset(group.id, "config_yaml", header.config_yaml)
        create_dataset(group.id, "physics", json.dumps(dict(header.physics), indent=1))
        create_dataset(group.id, "versions", json.dumps(dict(header.versions), indent=1))
        for name in TABLES:
            create_table(h5.require_group("tables"), name)
        h5.create_group("materials")
    return image.getvalue()


def place(storage: Storage, path: Path, data: bytes) -> None:
    """Make a file appear under its name whole, and without a journal of an earlier file."""
    temporary = path.with_name(path.name + ".new")
    try:
        _write(storage, temporary, data)
    except BaseException:
        with contextlib.suppress(OSError):
            storage.remove(temporary)
        raise
    storage.remove(journal_path(path))
    storage.sync_directory(path.parent)
    storage.replace(temporary, path)
    storage.sync_directory(path.parent)


def _write(storage: Storage, path: Path, data: bytes) -> None:
    descriptor = storage.open(path, write=True, create=True)
    try:
        storage.resize(descriptor, 0)
        storage.write_at(descriptor, data, 0)
        storage.sync(descriptor)
    finally:
        storage.close(descriptor)
