"""The archive's layout: names of groups, columns of tables, checksums. Units stand in the names of columns."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt

from driver.archive.records import STAGES, ArchiveError, Header, ModelRecord, Structure

FORMAT = "latdyn archive"
FORMAT_VERSION = "1.1"
"""A newer minor version adds columns or groups that an older reader need not know; a newer major one is refused."""

STATUS = {"done": 0, "failed": 1, "quarantined": 2, "requeued": 3}
"""What a row of `/tables/tasks` says of its task; `requeued` gives a quarantined task its attempts back."""

TEXT = h5py.string_dtype("utf-8")
CHECKSUM = h5py.string_dtype("ascii", 32)
ROW_CHECKSUM = "row_crc32"


def _name(length: int) -> np.dtype[Any]:
    return h5py.string_dtype("utf-8", length)


_TASK = [
    ("material", "<i4"),
    ("model", "<i4"),
    ("stage", h5py.enum_dtype({stage: number for number, stage in enumerate(STAGES)}, "u1")),
    ("segment", "<i4"),
]
_ROW = [("task", "<i8"), ("material", "<i4"), ("model", "<i4"), ("segment", "<i4")]
_END = [(ROW_CHECKSUM, "<u4")]

TABLES: Mapping[str, np.dtype[Any]] = {
    "materials": np.dtype(
        [
            ("key", TEXT),
            ("formula", TEXT),
            ("source", TEXT),
            ("prototype", TEXT),
            ("descriptors", TEXT),
            ("atoms", "<i4"),
            ("checksum", CHECKSUM),
            *_END,
        ]
    ),
    "refused": np.dtype([("key", TEXT), ("source", TEXT), ("message", TEXT), *_END]),
    "models": np.dtype(
        [
            *((name, TEXT) for name in ("key", "file", "sha256", "head", "training_data", "licence", "citation")),
            *_END,
        ]
    ),
    "tasks": np.dtype(
        [
            *_TASK,
            ("status", h5py.enum_dtype(STATUS, "u1")),
            ("attempt", "<i4"),
            ("seconds", "<f8"),
            ("finished_s", "<f8"),
            ("rank", "<i4"),
            ("host", _name(64)),
            ("device", _name(64)),
            ("evaluator", _name(32)),
            ("dtype", _name(16)),
            ("checksum", CHECKSUM),
            *_END,
        ]
    ),
    "failures": np.dtype(
        [
            ("task", "<i8"),
            *_TASK,
            ("attempt", "<i4"),
            ("exception", TEXT),
            ("message", TEXT),
            ("traceback", TEXT),
            ("quarantined", "?"),
            ("permanent", "?"),
            ("rank", "<i4"),
            ("host", TEXT),
            ("device", TEXT),
            *_END,
        ]
    ),
    "lost_workers": np.dtype(
        [("time_s", "<f8"), ("rank", "<i4"), ("host", TEXT), ("device", TEXT), ("reason", TEXT), *_END]
    ),
    "relax": np.dtype(
        [
            *_ROW,
            ("energy_eV", "<f8"),
            ("energy_per_atom_eV", "<f8"),
            ("volume_A3", "<f8"),
            *((f"{length}_A", "<f8") for length in "abc"),
            *((f"{angle}_deg", "<f8") for angle in ("alpha", "beta", "gamma")),
            ("max_force_eV_A", "<f8"),
            ("max_stress_eV_A3", "<f8"),
            ("steps", "<i8"),
            ("converged", "?"),
            ("space_group_initial", "<i8"),
            ("space_group_final", "<i8"),
            *_END,
        ]
    ),
    "displace": np.dtype(
        [
            *_ROW,
            ("atoms", "<i8"),
            ("displacements", "<i8"),
            ("max_residual_force_eV_A", "<f8"),
            ("max_drift_force_eV_A", "<f8"),
            ("fc_asymmetry_eV_A2", "<f8"),
            *_END,
        ]
    ),
    "dynamics": np.dtype(
        [
            *_ROW,
            ("replicas", "<i8"),
            ("frames", "<i8"),
            ("temperature_K", "<f8"),
            ("temperature_std_K", "<f8"),
            ("potential_energy_eV", "<f8"),
            ("energy_drift_meV_atom_ps", "<f8"),
            ("first_step", "<i8"),
            ("last_step", "<i8"),
            *_END,
        ]
    ),
}
"""Compound types of the tables below `/tables`. `material` and `model` in them are rows of `/tables/materials` and
`/tables/models`; `task` is a row of `/tables/tasks`."""

TABLES_SINCE_1_1 = frozenset({"lost_workers"})
"""Tables that archives of format 1.0 lack: empty to readers, made when there is a row to write."""

ROWS_PER_CHUNK = 1024


def scalar_columns(stage: str) -> tuple[str, ...]:
    """Names of the scalars of a stage, in the order of its table.

    Raises
    ------
    ArchiveError
        If the format has no table for the stage.
    """
    if stage not in TABLES or stage not in STAGES:
        raise ArchiveError(f"format {FORMAT_VERSION} of the archive has no table for stage {stage!r}")
    reserved = {name for name, _ in (*_ROW, *_END)}
    return tuple(name for name in TABLES[stage].names or () if name not in reserved)


def safe_key(key: str, what: str) -> str:
    """Return a key that can stand as one component of an HDF5 path.

    Raises
    ------
    ArchiveError
        If it is empty, ".", "..", or has "/", a control character or white space at its ends.
    """
    if not key or key in (".", "..") or "/" in key or key != key.strip() or not key.isprintable():
        raise ArchiveError(
            f"{what} key {key!r} cannot be used in the archive: give it a name without '/' or blank ends"
        )
    if what == "material" and key == "structure":
        raise ArchiveError("material key 'structure' is reserved: choose another")
    if what == "model" and key == "structure":
        raise ArchiveError("model key 'structure' is reserved: choose another")
    return key


def safe_path(path: str) -> str:
    """Return a path of groups and a dataset below a task's group, as `d0.0100/forces`.

    Raises
    ------
    ArchiveError
        If it is absolute or has an empty, "." or ".." component.
    """
    if any(part in ("", ".", "..") or not part.isprintable() for part in path.split("/")):
        raise ArchiveError(f"dataset path {path!r} is not a plain relative path")
    return path


def group_path(material: str, model: str, stage: str) -> str:
    """Where the arrays of a stage stand."""
    return f"/materials/{material}/{model}/{stage}"


def fill_row_checksums(rows: npt.NDArray[Any]) -> None:
    """Set the last column of table rows to the CRC-32 of the others, in place."""
    rows[ROW_CHECKSUM] = row_checksums(rows)


def row_checksums(rows: npt.NDArray[Any]) -> npt.NDArray[np.uint32]:
    """CRC-32 of every column but the last: of the packed bytes, or of a JSON list where a table has texts."""
    if rows.dtype.hasobject:
        texts = (json.dumps([_plain(value) for value in row.tolist()[:-1]], ensure_ascii=False) for row in rows)
        return np.array([zlib.crc32(text.encode("utf-8", "surrogateescape")) for text in texts], dtype=np.uint32)
    data, size = rows.tobytes(), rows.dtype.itemsize
    sums = (zlib.crc32(memoryview(data)[start : start + size - 4]) for start in range(0, len(data), size))
    return np.fromiter(sums, dtype=np.uint32, count=len(rows))


def _plain(value: Any) -> Any:
    return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value


def array_bytes(value: npt.NDArray[Any] | str) -> tuple[str, npt.NDArray[Any]]:
    """Return an array's description (type and shape) and its data, as they enter a checksum."""
    if isinstance(value, str):
        return "text", np.frombuffer(value.encode(), dtype=np.uint8)
    value = np.ascontiguousarray(value)
    return f"{value.dtype.newbyteorder('<').str}{list(value.shape)}", value


def data_checksum(scalars: bytes, items: Iterable[tuple[str, npt.NDArray[Any] | str]]) -> str:
    """Checksum of what a task has stored.

    Parameters
    ----------
    scalars : bytes
        The scalar columns of its row in the stage's table, packed.
    items : iterable of (str, array or text)
        Datasets in ascending order of their paths, of appended ones the rows of this task, each followed by its
        attributes as `path@name`. A dataset with several names counts once, under the first of them.

    Returns
    -------
    str
        BLAKE2b with 16 bytes, in hexadecimal digits.
    """
    checksum = hashlib.blake2b(scalars, digest_size=16)
    for name, value in items:
        description, data = array_bytes(value)
        checksum.update(f"\0{name}\0{description}\0".encode())
        if data.size:
            checksum.update(data.reshape(-1).view(np.uint8).data)
    return checksum.hexdigest()


def scalar_bytes(rows: npt.NDArray[Any], stage: str) -> bytes:
    """Packed bytes of the scalar columns of one row of a stage's table."""
    return b"".join(rows[name].tobytes() for name in scalar_columns(stage))


def structure_checksum(structure: Structure) -> str:
    """Checksum of a structure."""
    parts = (("cell", structure.cell), ("numbers", structure.numbers), ("positions", structure.positions))
    return data_checksum(b"", parts)


def header_checksum(header: Header) -> str:
    """Checksum of everything in the header."""
    fields = (header.campaign, header.seed, header.created, header.config_yaml, header.format_version)
    text = json.dumps([*fields, sorted(header.physics.items()), sorted(header.versions.items())])
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def model_fields(record: ModelRecord) -> Sequence[str]:
    """Values of a row of `/tables/models`, without its checksum."""
    names = (TABLES["models"].names or ())[:-1]
    return [getattr(record, name) for name in names]
