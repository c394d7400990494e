"""Settings as frozen dataclasses, apart from how they are composed (config.py). Importable without Hydra.

A field marked `PHYSICS` changes results, so an archive is tied to it; the others (lengths, batch sizes, retries) may
differ between two runs of the same campaign.
"""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from driver.errors import UsageError
from driver.patience import PATIENCE_S
from driver.walltime import parse_duration_s

PHYSICS: dict[str, Any] = {"physics": True}
"""Field metadata: results depend on this setting."""


DTYPES = ("float32", "float64")

DISTANCE_STEP_A = 1e-4
"""Displacements are told apart by four decimals."""

MAX_SEGMENTS = 100_000
"""Tasks of one trajectory: more of them cost more than what they save."""

_SEEDS = 2**63

_LONGEST_NAME = 200
"""Bytes in the name of a folder; file systems allow 255."""


@dataclass(frozen=True)
class SupercellSettings:
    """The supercell of displacement forces and of dynamics.

    Attributes
    ----------
    matrix : tuple of int
        3 diagonal entries or 9 entries (row by row) of the integer matrix whose rows express the supercell's lattice
        vectors in those of the material: supercell lattice = matrix @ lattice, as in `ase.build.make_supercell`
        (phonopy's matrix is its transpose); ignored where `min_length_A` is given.
    min_length_A : float or None
        Smallest distance between opposite faces; the smallest diagonal matrix that reaches it is taken.
    """

    matrix: tuple[int, ...] = field(default=(2, 2, 2), metadata=PHYSICS)
    min_length_A: float | None = field(default=None, metadata=PHYSICS)

    def __post_init__(self) -> None:
        _require(len(self.matrix) in (3, 9), f"supercell.matrix has 3 or 9 entries, not {len(self.matrix)}")
        _require(self.min_length_A is None or self.min_length_A > 0, "supercell.min_length_A must be positive")


@dataclass(frozen=True)
class RelaxSettings:
    """Relaxation: `mode` is cell_and_positions (FixSymmetry + FrechetCellFilter), positions, or none."""

    mode: str = field(default="cell_and_positions", metadata=PHYSICS)
    keep_symmetry: bool = field(default=True, metadata=PHYSICS)
    symprec_A: float = field(default=1e-3, metadata=PHYSICS)
    fmax_eV_A: float = field(default=1e-4, metadata=PHYSICS)
    max_steps: int = field(default=500, metadata=PHYSICS)
    optimizer: str = field(default="FIRE", metadata=PHYSICS)
    dtype: str = field(default="float64", metadata=PHYSICS)

    def __post_init__(self) -> None:
        _choice("relax.mode", self.mode, ("cell_and_positions", "positions", "none"))
        _choice("relax.optimizer", self.optimizer, ("FIRE", "LBFGS", "BFGS"))
        _choice("relax.dtype", self.dtype, DTYPES)
        _positive(self, "relax", "symprec_A", "fmax_eV_A", "max_steps")


@dataclass(frozen=True)
class DisplaceSettings:
    """Displacement forces. `distances_A`: one set of displaced cells each; `sigma_distance_A` and `bands_distance_A`
    say which set sigma and phonons are reduced from."""

    distances_A: tuple[float, ...] = field(default=(0.01,), metadata=PHYSICS)
    sigma_distance_A: float = field(default=0.01, metadata=PHYSICS)
    bands_distance_A: float = field(default=0.01, metadata=PHYSICS)
    symprec_A: float = field(default=1e-5, metadata=PHYSICS)
    symmetrize: bool = field(default=True, metadata=PHYSICS)
    dtype: str = field(default="float64", metadata=PHYSICS)

    def __post_init__(self) -> None:
        _choice("displace.dtype", self.dtype, DTYPES)
        _positive(self, "displace", "symprec_A")
        _require(
            bool(self.distances_A) and min(self.distances_A) >= DISTANCE_STEP_A,
            f"displace.distances_A: one or more lengths of at least {DISTANCE_STEP_A} A",
        )
        steps = {round(distance / DISTANCE_STEP_A) for distance in self.distances_A}
        _require(
            len(steps) == len(self.distances_A),
            f"displace.distances_A: lengths must differ by at least {DISTANCE_STEP_A} A",
        )
        for name in ("sigma_distance_A", "bands_distance_A"):
            value = getattr(self, name)
            listed = ", ".join(map(str, self.distances_A))
            _require(
                value in self.distances_A, f"displace.{name} = {value} is not among displace.distances_A ({listed})"
            )


@dataclass(frozen=True)
class DynamicsSettings:
    """Molecular dynamics in a fixed cell.

    Attributes
    ----------
    ensemble : str
        langevin (BAOAB), andersen or nve.
    temperature_K, timestep_fs : float
    equilibration_ps, production_ps, segment_ps : float
        The trajectory starts at time 0 with `equilibration_ps` that the analysis drops; it is run in segments, one
        task each. `production_ps` may be lengthened later.
    frame_interval_fs : float
        A multiple of the time step; a segment is a multiple of it.
    replicas : int
        Independent trajectories per material.
    friction_per_ps : float
        Langevin friction.
    collision_probability : float
        Andersen: per atom and step.
    initial_temperature_K : float or None
        Of the Maxwell-Boltzmann velocities at time 0; None: `temperature_K`, doubled for nve, where half of it goes
        into potential energy.
    dtype, frame_dtype : str
        Of the evaluation, and of the stored frames.
    max_temperature_factor : float
        A run whose temperature exceeds this multiple of `temperature_K` (averaged over 10 frames) has exploded.
    min_distance_A : float
        A run with two atoms closer than this has collapsed.
    """

    ensemble: str = field(default="langevin", metadata=PHYSICS)
    temperature_K: float = field(default=300.0, metadata=PHYSICS)
    timestep_fs: float = field(default=2.0, metadata=PHYSICS)
    equilibration_ps: float = field(default=2.0, metadata=PHYSICS)
    production_ps: float = 10.0
    segment_ps: float = field(default=1.0, metadata=PHYSICS)
    frame_interval_fs: float = field(default=10.0, metadata=PHYSICS)
    replicas: int = field(default=1, metadata=PHYSICS)
    friction_per_ps: float = field(default=10.0, metadata=PHYSICS)
    collision_probability: float = field(default=0.5, metadata=PHYSICS)
    initial_temperature_K: float | None = field(default=None, metadata=PHYSICS)
    dtype: str = field(default="float32", metadata=PHYSICS)
    frame_dtype: str = field(default="float32", metadata=PHYSICS)
    max_temperature_factor: float = field(default=4.0, metadata=PHYSICS)
    min_distance_A: float = field(default=0.7, metadata=PHYSICS)

    def __post_init__(self) -> None:
        _choice("dynamics.ensemble", self.ensemble, ("langevin", "andersen", "nve"))
        _choice("dynamics.dtype", self.dtype, DTYPES)
        _choice("dynamics.frame_dtype", self.frame_dtype, DTYPES)
        _positive(
            self,
            "dynamics",
            "temperature_K",
            "timestep_fs",
            "segment_ps",
            "frame_interval_fs",
            "replicas",
            "production_ps",
        )
        _require(self.equilibration_ps >= 0, "dynamics.equilibration_ps must not be negative")
        _multiple("dynamics", "frame_interval_fs", self.frame_interval_fs, "dynamics.timestep_fs", self.timestep_fs)
        _multiple(
            "dynamics",
            "segment_ps",
            self.segment_ps,
            "dynamics.frame_interval_fs (in ps)",
            self.frame_interval_fs / 1000.0,
        )
        total = self.equilibration_ps + self.production_ps
        _multiple("dynamics", "equilibration_ps + production_ps", total, "dynamics.segment_ps", self.segment_ps)
        _require(
            self.segments <= MAX_SEGMENTS,
            f"dynamics: {total:g} ps in segments of {self.segment_ps:g} ps are {self.segments} tasks per trajectory, "
            f"at most {MAX_SEGMENTS} are possible: raise dynamics.segment_ps",
        )
        self._check_bath()

    def _check_bath(self) -> None:
        """Check the thermostat and the limits beyond which a run has failed."""
        _require(self.friction_per_ps >= 0, "dynamics.friction_per_ps must not be negative")
        _require(
            self.friction_per_ps > 0 or self.ensemble != "langevin",
            "dynamics.friction_per_ps must be positive for langevin; without a thermostat: dynamics.ensemble=nve",
        )
        _require(0 < self.collision_probability <= 1, "dynamics.collision_probability lies above 0 and is at most 1")
        _require(
            self.initial_temperature_K is None or self.initial_temperature_K > 0,
            "dynamics.initial_temperature_K must be positive, or null for what temperature_K says",
        )
        _require(self.max_temperature_factor > 0, "dynamics.max_temperature_factor must be positive")
        _require(self.min_distance_A >= 0, "dynamics.min_distance_A must not be negative")

    @property
    def segment_steps(self) -> int:
        """Time steps per segment."""
        return round(self.segment_ps * 1000.0 / self.timestep_fs)

    @property
    def frame_steps(self) -> int:
        """Time steps between stored frames."""
        return round(self.frame_interval_fs / self.timestep_fs)

    @property
    def segments(self) -> int:
        """Segments of a whole trajectory."""
        return max(1, round((self.equilibration_ps + self.production_ps) / self.segment_ps))


@dataclass(frozen=True)
class EngineSettings:
    """What computes forces; relaxation always uses the reference.

    Attributes
    ----------
    evaluator : str
        Of dynamics: torch (the reference), symmetrix (the fast one, refused where it cannot be used), or auto: the fast
        one where it can be used and agrees with the reference.
    displace_evaluator : str
        Of displacement forces, likewise.
    energy_tolerance_eV_atom : float
        Agreement: largest difference of the energy per atom.
    force_tolerance_eV_A, force_tolerance_relative : float
        Agreement: a force component differs by the first, plus the second times the largest component, at most.
    stiffness_tolerance_eV_A2, stiffness_tolerance_relative : float
        Agreement for displacement forces, also: force constants differ by the first, plus the second times the largest
        one, at most.
    cuequivariance : bool
        The reference uses NVIDIA's cuEquivariance kernels, which must be installed; worth trying on GPUs only.
    cache : str or None
        Folder of prepared models; None: $LATDYN_CACHE, else ~/.cache/latdyn/prepared.
    """

    evaluator: str = "auto"
    displace_evaluator: str = "torch"
    energy_tolerance_eV_atom: float = 1e-4
    force_tolerance_eV_A: float = 5e-4
    force_tolerance_relative: float = 5e-4
    stiffness_tolerance_eV_A2: float = 1e-6
    stiffness_tolerance_relative: float = 5e-5
    cuequivariance: bool = False
    cache: str | None = None

    def __post_init__(self) -> None:
        for name in ("evaluator", "displace_evaluator"):
            _choice(f"engine.{name}", getattr(self, name), ("auto", "torch", "symmetrix"))
        tolerances = (item.name for item in fields(self) if "tolerance" in item.name)
        _positive(self, "engine", *tolerances)

    def evaluator_of(self, stage: str) -> tuple[str, str]:
        """Return the setting that says what a stage computes forces with: its name, and its value."""
        name = "displace_evaluator" if stage == "displace" else "evaluator"
        return f"engine.{name}", getattr(self, name)


@dataclass(frozen=True)
class ExecutionSettings:
    """How a campaign is run; nothing here changes results beyond rounding.

    Attributes
    ----------
    device : str
        auto, cpu, cuda or cuda:N.
    threads : int or None
        CPU threads per worker; None: a fair share of the cores.
    capacity_atoms : int or None
        Atoms per batch of a worker; None: found by measuring (see `driver.batch_size`).
    leases_in_flight : int
        Leases that a worker holds at a time.
    max_attempts : int
        Failed attempts after which a task is quarantined.
    signals : tuple of str
        Signals that ask for a drain.
    grace_s : float
        After a signal, how long running leases may go on.
    commit_every_s : float
        No result waits longer for its commit.
    walltime : str or None
        Length of the run (`HH:MM:SS` or seconds); None: what Slurm says, if it runs this job.
    patience_s : float
        A rank that gives no sign of life for so long is lost, and one that computes without getting on for this much
        longer than its own speed explains.
    """

    device: str = "auto"
    threads: int | None = None
    capacity_atoms: int | None = None
    leases_in_flight: int = 2
    max_attempts: int = 3
    signals: tuple[str, ...] = ("SIGTERM", "SIGINT", "SIGUSR1")
    grace_s: float = 20.0
    commit_every_s: float = 1.0
    walltime: str | None = None
    patience_s: float = PATIENCE_S

    def __post_init__(self) -> None:
        _require(
            re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device) is not None,
            f"execution.device = {self.device!r}: the device is auto, cpu, cuda or cuda:N",
        )
        for name in ("threads", "capacity_atoms", "leases_in_flight", "max_attempts"):
            value = getattr(self, name)
            _require(value is None or value >= 1, f"execution.{name} = {value}: must be at least 1")
        _positive(self, "execution", "commit_every_s", "patience_s")
        _require(self.grace_s >= 0, f"execution.grace_s = {self.grace_s}: must not be negative")
        for name in self.signals:
            _require(_can_be_handled(name), f"execution.signals: {name!r} cannot be handled; name one such as SIGTERM")
        if self.walltime is not None:
            _require(parse_duration_s(self.walltime) > 0, f"execution.walltime = {self.walltime!r}: must be positive")


@dataclass(frozen=True)
class Settings:
    """All settings of a campaign except its materials and models.

    Attributes
    ----------
    name : str
        The campaign lives in `runs/<name>/`.
    seed : int
        Of every random stream.
    runs : str
        Folder of all campaigns.
    stages : tuple of str
        Which of relax, displace, dynamics to run.
    retry : str
        "failed": give quarantined tasks another round of attempts.
    supercell, relax, displace, dynamics, engine, execution
        Settings of the parts.
    """

    name: str
    seed: int = field(default=0, metadata=PHYSICS)
    runs: str = "runs"
    stages: tuple[str, ...] = ("relax", "displace", "dynamics")
    retry: str = "none"
    supercell: SupercellSettings = field(default_factory=SupercellSettings)
    relax: RelaxSettings = field(default_factory=RelaxSettings)
    displace: DisplaceSettings = field(default_factory=DisplaceSettings)
    dynamics: DynamicsSettings = field(default_factory=DynamicsSettings)
    engine: EngineSettings = field(default_factory=EngineSettings)
    execution: ExecutionSettings = field(default_factory=ExecutionSettings)

    def __post_init__(self) -> None:
        known = ("relax", "displace", "dynamics")
        for stage in self.stages:
            _require(stage in known, f"stages: {stage!r} is not one of {', '.join(known)}")
        _require(self.retry in ("none", "failed"), f"retry is none or failed, not {self.retry!r}")
        _require(bool(self.stages), f"stages: none is selected; there is {', '.join(known)}")
        _require(_can_be_folder(self.name), f"name: {self.name!r} cannot be a folder; use letters, digits and ._-")
        _require(0 <= self.seed < _SEEDS, f"seed = {self.seed}: must be at least 0 and below 2^63")

    @property
    def folder(self) -> Path:
        """Where the campaign lives."""
        return Path(self.runs).expanduser() / self.name

    @property
    def archive(self) -> Path:
        """The campaign's archive."""
        return self.folder / "archive.h5"


def _can_be_folder(name: str) -> bool:
    odd = set(name) & set("/\\") or name in ("", ".", "..") or name != name.strip() or not name.isprintable()
    return not odd and len(name.encode()) <= _LONGEST_NAME


def _can_be_handled(name: str) -> bool:
    return name.upper() in signal.Signals.__members__ and name.upper() not in ("SIGKILL", "SIGSTOP")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise UsageError(message)


def _choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    _require(value in choices, f"{name}: {value!r} is not one of {', '.join(choices)}")


def _positive(settings: Any, section: str, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        _require(value > 0, f"{section}.{name} = {value}: must be positive")


def _multiple(section: str, name: str, value: float, of: str, unit: float) -> None:
    ratio = value / unit
    whole = ratio > 0.5 and abs(ratio - round(ratio)) < 1e-6 * ratio
    _require(whole, f"{section}.{name} = {value}: must be a multiple of {of} = {unit}")
