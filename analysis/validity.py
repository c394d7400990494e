"""Is a trajectory a valid run at all? Temperature, its steadiness and its partition, energy drift, length.

A run that fails here says nothing about its crystal, and is never counted as unstable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from ase import units

from analysis.anharmonic import BlockError, block_error

Floats = npt.NDArray[np.float64]

EV_PER_U_A2_FS2 = units._amu * 1e10 / units._e
"""1 u angstrom^2 fs^-2 in eV: (1e-10 m / 1e-15 s)^2 = 1e10 m^2 s^-2."""


@dataclass(frozen=True)
class ValiditySettings:
    """What a valid run must satisfy.

    Attributes
    ----------
    temperature_tolerance : float
        Mean temperature: largest relative deviation from the target, beyond three standard errors.
    halves_tolerance : float
        Temperatures of the two halves: largest relative difference, beyond three standard errors.
    site_tolerance : float
        Temperature of each site (equipartition): largest relative deviation from the mean, beyond three standard
        errors.
    max_energy_drift_meV_atom_ps : float
        NVE only: largest slope of the total energy.
    min_production_ps : float
        Shortest production, all replicas together.
    """

    temperature_tolerance: float = 0.05
    halves_tolerance: float = 0.10
    site_tolerance: float = 0.15
    max_energy_drift_meV_atom_ps: float = 1.0
    min_production_ps: float = 1.0


@dataclass(frozen=True)
class RunRecord:
    """What validity is judged by, of one replica after equilibration.

    Attributes
    ----------
    time_fs : (T,) float
    temperature_K : (T,) float
    site_temperature_K : dict of (T,) float
        Site -> kinetic temperature of its atoms.
    energy_eV_atom : (T,) float
        Total energy per atom.
    """

    time_fs: Floats
    temperature_K: Floats
    site_temperature_K: Mapping[str, Floats]
    energy_eV_atom: Floats


@dataclass(frozen=True)
class Validity:
    """The verdict on a run: `reasons` is empty if and only if it is valid.

    `energy_drift_meV_atom_ps` is the mean slope of the total energy; it says something only for nve, where it is
    conserved.
    """

    reasons: tuple[str, ...]
    production_ps: float
    temperature_K: float
    temperature_error: BlockError
    site_temperature_K: dict[str, float]
    energy_drift_meV_atom_ps: float

    @property
    def valid(self) -> bool:
        """True if nothing speaks against the run."""
        return not self.reasons


def kinetic_temperatures(
    velocities_A_fs: Floats, masses_u: Floats, sites: Sequence[str]
) -> tuple[Floats, dict[str, Floats]]:
    """Return the temperature of all atoms, and of those of each site, in K, frame by frame.

    The total momentum is zero, in every ensemble, so atom i of mass m_i has 3 (1 - m_i / M) degrees of freedom, M the
    mass of all: 3N - 3 altogether.

    Parameters
    ----------
    velocities_A_fs : (T, N, 3) float
    masses_u : (N,) float
    sites : sequence of str, length N
    """
    velocities = np.asarray(velocities_A_fs, dtype=np.float64)
    kinetic = 0.5 * EV_PER_U_A2_FS2 * masses_u * (velocities**2).sum(axis=2)
    degrees = 3.0 * (1.0 - masses_u / masses_u.sum())
    names = np.asarray(sites)

    def temperature(atoms: npt.NDArray[np.bool_]) -> Floats:
        return np.asarray(2.0 * kinetic[:, atoms].sum(axis=1) / (degrees[atoms].sum() * units.kB))

    by_site = {name: temperature(names == name) for name in dict.fromkeys(sites)}
    return temperature(np.ones(len(names), dtype=bool)), by_site


def judge(
    runs: Sequence[RunRecord], target_K: float, ensemble: str, settings: ValiditySettings | None = None
) -> Validity:
    """Judge the replicas of one crystal together.

    Parameters
    ----------
    runs : sequence of RunRecord
    target_K : float
        The temperature that was asked for.
    ensemble : str
        langevin, andersen or nve.
    settings : ValiditySettings, optional
    """
    settings = settings or ValiditySettings()
    runs = [run for run in runs if len(run.time_fs)]
    length = sum(_length_ps(run.time_fs) for run in runs)
    if not runs:
        nan = float("nan")
        return Validity(("no frames after equilibration",), 0.0, nan, block_error([]), {}, nan)
    temperatures = [run.temperature_K for run in runs]
    mean = float(np.concatenate(temperatures).mean())
    error = block_error(temperatures)
    site_series = {site: [run.site_temperature_K[site] for run in runs] for site in runs[0].site_temperature_K}
    drift = float(np.mean([_drift_meV_ps(run) for run in runs]))
    reasons = [
        *_length_reason(length, settings),
        *_temperature_reason(mean, error, target_K, settings),
        *_halves_reason(temperatures, mean, settings),
        *_site_reasons(site_series, mean, settings),
    ]
    if ensemble == "nve" and abs(drift) > settings.max_energy_drift_meV_atom_ps:
        reasons.append(
            f"total energy drifts by {drift:.2f} meV/atom/ps (allowed: {settings.max_energy_drift_meV_atom_ps:g})"
        )
    return Validity(
        reasons=tuple(reasons),
        production_ps=length,
        temperature_K=mean,
        temperature_error=error,
        site_temperature_K={site: float(np.concatenate(series).mean()) for site, series in site_series.items()},
        energy_drift_meV_atom_ps=drift,
    )


def _length_ps(time_fs: Floats) -> float:
    """Each frame stands for the interval before it."""
    if len(time_fs) < 2:
        return 0.0
    return float(time_fs[-1] - time_fs[0]) * len(time_fs) / (len(time_fs) - 1) / 1000.0


def _drift_meV_ps(run: RunRecord) -> float:
    if len(run.time_fs) < 2:
        return float("nan")
    return float(np.polyfit(run.time_fs / 1000.0, run.energy_eV_atom * 1000.0, 1)[0])


def _beyond(difference: float, allowed: float, error: float) -> bool:
    """True if a difference exceeds what is allowed and three standard errors on top; a nan counts as beyond."""
    margin = 3.0 * error if np.isfinite(error) else 0.0
    return not abs(difference) <= allowed + margin


def _length_reason(length_ps: float, settings: ValiditySettings) -> list[str]:
    if length_ps >= settings.min_production_ps * (1.0 - 1e-9):
        return []
    return [f"production of {length_ps:.2f} ps is shorter than {settings.min_production_ps:g} ps"]


def _temperature_reason(mean: float, error: BlockError, target: float, settings: ValiditySettings) -> list[str]:
    if not _beyond(mean - target, settings.temperature_tolerance * target, error.error):
        return []
    return [f"mean temperature {mean:.0f} K, asked for {target:.0f} K"]


def _halves_reason(temperatures: Sequence[Floats], mean: float, settings: ValiditySettings) -> list[str]:
    first = [series[: len(series) // 2] for series in temperatures]
    second = [series[len(series) // 2 :] for series in temperatures]
    if min(sum(map(len, first)), sum(map(len, second))) < 2:
        return []
    means = [float(np.concatenate(half).mean()) for half in (first, second)]
    error = float(np.hypot(block_error(first).error, block_error(second).error))
    if not _beyond(means[1] - means[0], settings.halves_tolerance * mean, error):
        return []
    return [f"temperature not steady: {means[0]:.0f} K in the first half, {means[1]:.0f} K in the second"]


def _site_reasons(series: Mapping[str, Sequence[Floats]], mean: float, settings: ValiditySettings) -> list[str]:
    reasons = []
    for site, values in series.items():
        temperature = float(np.concatenate(list(values)).mean())
        if _beyond(temperature - mean, settings.site_tolerance * mean, block_error(values).error):
            reasons.append(f"no equipartition: {site} at {temperature:.0f} K, all atoms at {mean:.0f} K")
    return reasons
