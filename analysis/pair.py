"""One material with one model: everything that the archive allows to be said about it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from phonopy import Phonopy

from analysis.anharmonic import (
    ForceMoments,
    Sigma,
    displacements,
    force_moments,
    harmonic_forces,
    running_sigma,
    sigma,
)
from analysis.harmonic import (
    Bands,
    DensityOfStates,
    ForceConstants,
    Modes,
    ThermalProperties,
    bands,
    build_phonopy,
    commensurate_modes,
    density_of_states,
    full_force_constants,
    mesh_modes,
    thermal_properties,
)
from analysis.inputs import InputError, Sites, force_constants, sites, trajectories
from analysis.settings import AnalysisSettings, CampaignSettings
from analysis.stability import Label, anharmonic_label, harmonic_label
from analysis.validity import RunRecord, Validity, judge, kinetic_temperatures
from driver.archive.h5md import Trajectory
from driver.archive.reader import ArchiveView
from driver.archive.records import ArchiveError
from driver.errors import LatdynError

Floats = npt.NDArray[np.float64]
T = TypeVar("T")


@dataclass(frozen=True)
class Phonons:
    """Harmonic results of one material and model; `thermal` where stable, `dos` where asked for."""

    commensurate: Modes
    mesh: Modes
    label: Label
    thermal: ThermalProperties | None
    dos: DensityOfStates | None


@dataclass(frozen=True)
class Anharmonicity:
    """Results of the trajectories of one material and model.

    Attributes
    ----------
    sigma : Sigma or None
        None where the run failed or left no frames.
    validity : Validity
    running : list of (time_ps (T,), sigma (T,)), one for each replica; where asked for
    """

    sigma: Sigma | None
    validity: Validity
    label: Label
    running: list[tuple[Floats, Floats]]


@dataclass(frozen=True)
class PairResult:
    """What was found for one material and model; a part is None where it could not be had, and `problems` says why."""

    material: str
    model: str
    sites: Sites | None = None
    phonons: Phonons | None = None
    bands: Bands | None = None
    anharmonicity: Anharmonicity | None = None
    problems: tuple[str, ...] = field(default=())


def reduce_pair(
    view: ArchiveView,
    material: str,
    model: str,
    done: frozenset[str],
    campaign: CampaignSettings,
    settings: AnalysisSettings,
    *,
    details: bool = False,
) -> PairResult:
    """Reduce one material and model; whatever goes wrong becomes a line in `problems`, and the rest goes on.

    Parameters
    ----------
    done : set of str
        The stages that the archive holds results of. A trajectory whose chain was given up (an exploded run) must not
        be among them.
    details : bool
        Also what only plots need: bands, density of states, running sigma.
    """
    problems: list[str] = []

    def attempt(what: str, function: Callable[[], T]) -> T | None:
        try:
            return function()
        except (LatdynError, ArchiveError) as error:
            problems.append(f"{what}: {error}")
            return None

    @functools.cache
    def built(distance_A: float | None) -> tuple[ForceConstants, Phonopy]:
        constants = force_constants(view, material, model, distance_A)
        return constants, build_phonopy(constants, campaign.displace_symprec_A)

    found = phonons = lines = anharmonicity = None
    if "relax" in done:
        found = attempt("symmetry", lambda: sites(view.relaxed(material, model), settings.symprec_A))
    if "displace" in done:
        phonons = attempt("phonons", lambda: _phonons(built(campaign.bands_distance_A)[1], settings, details))
    if phonons and details:
        lines = attempt("bands", lambda: bands(built(campaign.bands_distance_A)[1]))
    if found and {"displace", "dynamics"} <= done:
        names = found.names
        anharmonicity = attempt(
            "sigma",
            lambda: _anharmonicity(
                *built(campaign.sigma_distance_A),
                trajectories(view, material, model),
                names,
                campaign,
                settings,
                details,
            ),
        )
    return PairResult(material, model, found, phonons, lines, anharmonicity, tuple(problems))


def _phonons(phonon: Phonopy, settings: AnalysisSettings, details: bool) -> Phonons:
    commensurate = commensurate_modes(phonon)
    mesh = mesh_modes(phonon, settings.mesh_length_A)
    label = harmonic_label(commensurate, mesh, settings.tolerance_THz)
    return Phonons(
        commensurate=commensurate,
        mesh=mesh,
        label=label,
        thermal=thermal_properties(phonon, settings.thermal_temperature_K) if label.stable else None,
        dos=density_of_states(phonon) if details else None,
    )


def _anharmonicity(
    constants: ForceConstants,
    phonon: Phonopy,
    replicas: Sequence[Trajectory],
    unit_sites: Sequence[str],
    campaign: CampaignSettings,
    settings: AnalysisSettings,
    details: bool,
) -> Anharmonicity:
    if campaign.equilibration_ps is None or campaign.temperature_K is None:
        raise InputError("the archive's configuration names no equilibration or temperature of the dynamics")
    names = [unit_sites[phonon.supercell.u2u_map[atom]] for atom in phonon.supercell.s2u_map]
    matrix = full_force_constants(phonon)
    production = [_after(trajectory, 1000.0 * campaign.equilibration_ps) for trajectory in replicas]
    production = [frames for frames in production if len(frames.time_fs)]
    moments = [_moments(frames, constants, matrix, names) for frames in production]
    runs = [_run_record(frames, constants.masses_u, names) for frames in production]
    validity = judge(runs, campaign.temperature_K, campaign.ensemble, settings.validity)
    measured = sigma(moments) if moments else None
    running = [(run.time_fs / 1000.0, running_sigma(part)) for run, part in zip(runs, moments, strict=True)]
    label = anharmonic_label(measured, validity, campaign.temperature_K)
    return Anharmonicity(measured, validity, label, running if details else [])


@dataclass(frozen=True)
class _Frames:
    """The frames of a trajectory after equilibration, in float64."""

    positions_A: Floats
    velocities_A_fs: Floats
    forces_eV_A: Floats
    time_fs: Floats
    energy_eV: Floats


def _after(trajectory: Trajectory, equilibration_fs: float) -> _Frames:
    """Drop the frames up to and including the end of equilibration (with a slack for rounding)."""
    time = np.asarray(trajectory.time_fs, dtype=np.float64)
    kept = time > equilibration_fs + 1e-3
    return _Frames(
        positions_A=np.asarray(trajectory.positions_A)[kept].astype(np.float64),
        velocities_A_fs=np.asarray(trajectory.velocities_A_fs)[kept].astype(np.float64),
        forces_eV_A=np.asarray(trajectory.forces_eV_A)[kept].astype(np.float64),
        time_fs=time[kept],
        energy_eV=np.asarray(trajectory.potential_energy_eV + trajectory.kinetic_energy_eV, dtype=np.float64)[kept],
    )


def _moments(frames: _Frames, constants: ForceConstants, matrix: Floats, names: list[str]) -> ForceMoments:
    reference = constants.supercell
    u = displacements(frames.positions_A, reference.positions, reference.cell, constants.masses_u)
    return force_moments(frames.forces_eV_A, harmonic_forces(u, matrix), names)


def _run_record(frames: _Frames, masses_u: Floats, names: list[str]) -> RunRecord:
    temperature, by_site = kinetic_temperatures(frames.velocities_A_fs, masses_u, names)
    return RunRecord(frames.time_fs, temperature, by_site, frames.energy_eV / len(masses_u))
