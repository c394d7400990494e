"""Settings as frozen dataclasses, apart from how they are composed (config.py). Importable without Hydra.

A field marked `PHYSICS` changes results, so an archive is tied to it; the others (lengths, batch sizes, retries) may
differ between two runs of the same campaign.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

PHYSICS: dict[str, Any] = {"physics": True}
"""Field metadata: results depend on this setting."""


@dataclass(frozen=True)
class SupercellSettings:
    """The supercell of displacement forces and of dynamics.

    Attributes
    ----------
    matrix : tuple of int
        3 diagonal entries or 9 entries (row by row) of the integer matrix that multiplies the material's cell;
        ignored where `min_length_A` is given.
    min_length_A : float or None
        Smallest distance between opposite faces; the smallest diagonal matrix that reaches it is taken.
    """

    matrix: tuple[int, ...] = field(default=(2, 2, 2), metadata=PHYSICS)
    min_length_A: float | None = field(default=None, metadata=PHYSICS)


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
        Of the Maxwell-Boltzmann velocities at time 0; None: `temperature_K`, doubled for nve (equipartition takes half).
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
