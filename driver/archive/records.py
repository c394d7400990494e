"""What goes into the archive and comes out of it: plain frozen records, independent of how they are stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

STAGES = ("relax", "displace", "dynamics", "rescore")
"""Every stage, in the order in which a material goes through them."""

Scalar = float | int | bool | str


class ArchiveError(Exception):
    """The archive cannot be read, written or used as asked; the message names the thing and the remedy."""


class StorageError(ArchiveError):
    """The file system refuses to write (full, quota, read-only, broken); what is committed is intact."""


@dataclass(frozen=True, order=True)
class TaskKey:
    """One task of a campaign.

    Attributes
    ----------
    material, model : str
        Keys, as `Cs2AgBiBr6` and `mace-mpa-0`.
    stage : str
        One of `STAGES`.
    segment : int
        Number of the segment within a trajectory; 0 for every other stage.
    """

    material: str
    model: str
    stage: str
    segment: int = 0

    def __str__(self) -> str:
        tail = f" segment {self.segment}" if self.stage == "dynamics" else ""
        return f"{self.material} / {self.model} / {self.stage}{tail}"


@dataclass(frozen=True)
class Structure:
    """A periodic crystal.

    Attributes
    ----------
    numbers : (N,) int64
        Atomic numbers.
    positions : (N, 3) float64
        Cartesian positions in angstrom.
    cell : (3, 3) float64
        Lattice vectors in angstrom, one per row.
    """

    numbers: npt.NDArray[np.int64]
    positions: npt.NDArray[np.float64]
    cell: npt.NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def volume(self) -> float:
        """Volume of the cell in cubic angstrom."""
        return float(abs(np.linalg.det(self.cell)))


@dataclass(frozen=True)
class MaterialRecord:
    """A material as it enters a campaign: `source` says where its structure comes from, `descriptors` holds scalars
    known beforehand (tolerance factors), with units in their names."""

    key: str
    formula: str
    structure: Structure
    source: str
    prototype: str = ""
    descriptors: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class RefusedMaterial:
    """A material that was asked for and cannot be used: its key, where it comes from, and why."""

    key: str
    source: str
    message: str

    def __str__(self) -> str:
        return f"{self.source}: {self.message}"


@dataclass(frozen=True)
class ModelRecord:
    """A model as used by a campaign: its key, the sha256 of its file, its head ("" for the default one)."""

    key: str
    file: str
    sha256: str
    head: str = ""
    training_data: str = ""
    licence: str = ""
    citation: str = ""


@dataclass(frozen=True)
class Array:
    """One dataset of a result.

    Attributes
    ----------
    value : ndarray or str
        The data; a text is stored as a scalar string.
    units : str
        Units in the notation of H5MD ("angstrom", "eV angstrom-1"); "" for dimensionless numbers and texts.
    append : bool
        True: rows added along axis 0 to those of earlier segments. False: written once, replacing what a failed
        attempt may have left.
    """

    value: npt.NDArray[Any] | str
    units: str = ""
    append: bool = False


@dataclass(frozen=True)
class TaskResult:
    """What a stage yields for a task that succeeded.

    Attributes
    ----------
    key : TaskKey
    scalars : mapping
        The columns of `/tables/<stage>` (see schema.py), units in the names.
    arrays : mapping
        Path below `/materials/<material>/<model>/<stage>/` -> `Array`.
    attributes : mapping
        Path of a group or dataset (there) -> its HDF5 attributes.
    links : mapping
        Path of a hard link -> path of the dataset that it names again (H5MD shares `step` and `time` so).
    evaluator, dtype : str
        What computed it ("torch", "float64").
    """

    key: TaskKey
    scalars: Mapping[str, Scalar]
    arrays: Mapping[str, Array]
    attributes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    links: Mapping[str, str] = field(default_factory=dict)
    evaluator: str = ""
    dtype: str = ""


@dataclass(frozen=True)
class TaskFailure:
    """What a stage yields for a task that failed; `permanent` if trying again cannot help."""

    key: TaskKey
    exception: str
    message: str
    traceback: str
    permanent: bool = False


@dataclass(frozen=True)
class Attempt:
    """A finished attempt at a task, good or bad: what the archive commits, one row of `/tables/tasks`.

    Attributes
    ----------
    outcome : TaskResult or TaskFailure
    number : int
        1 for the first attempt.
    seconds : float
        Wall time, the task's share of its lease.
    rank : int
    host, device : str
    quarantined : bool
        The task has been given up with this attempt (failures only).
    """

    outcome: TaskResult | TaskFailure
    number: int
    seconds: float
    rank: int
    host: str
    device: str
    quarantined: bool = False

    @property
    def key(self) -> TaskKey:
        """The task that was attempted."""
        return self.outcome.key


@dataclass(frozen=True)
class LostWorker:
    """A worker that a run went on without.

    Attributes
    ----------
    rank : int
    host, device : str
        "" where it had not said.
    reason : str
    time_s : float
        Since the epoch.
    """

    rank: int
    host: str
    device: str
    reason: str
    time_s: float


@dataclass(frozen=True)
class Header:
    """Identity of an archive: `config_yaml` is the composed configuration, `physics` the flattened settings that
    results depend on (name -> JSON text), `versions` software names -> versions."""

    campaign: str
    seed: int
    config_yaml: str
    physics: Mapping[str, str]
    versions: Mapping[str, str]
    format_version: str = ""
    created: str = ""


@dataclass(frozen=True)
class TaskState:
    """How far the archive says that a task is: "done", "failed" (may be tried again) or "quarantined"."""

    status: str
    attempts: int
