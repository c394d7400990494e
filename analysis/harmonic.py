"""Harmonic phonons from stored force constants, through phonopy.

Frequencies are in THz (cycles, not radians); an imaginary frequency is given as a negative number. No correction for
long-range dipoles (NAC) is made, since the models know no charges.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from ase.cell import Cell
from phonopy import Phonopy
from phonopy.harmonic.dynmat_to_fc import get_commensurate_points
from phonopy.harmonic.force_constants import compact_fc_to_full_fc
from phonopy.structure.atoms import PhonopyAtoms

from driver.archive.records import Structure
from driver.errors import LatdynError

Floats = npt.NDArray[np.float64]

_SAME_ATOM_A = 1e-4
"""How far an atom of the rebuilt supercell may be from the stored one: rounding, not another order of atoms."""


class PhononError(LatdynError):
    """Phonons cannot be computed from the given force constants."""


@dataclass(frozen=True)
class ForceConstants:
    """Second-order force constants with the cells that they refer to.

    Attributes
    ----------
    unitcell : Structure
        The cell that `supercell_matrix` multiplies.
    supercell : Structure
        N atoms, in phonopy's order.
    masses_u : (N,) float
        Of the supercell's atoms.
    supercell_matrix : (3, 3) int
    primitive_matrix : (3, 3) float
        Both in phonopy's conventions.
    values : (n, N, 3, 3) float
        Compact form in eV angstrom-2: rows for the n atoms of the primitive cell.
    """

    unitcell: Structure
    supercell: Structure
    masses_u: Floats
    supercell_matrix: npt.NDArray[np.int64]
    primitive_matrix: Floats
    values: Floats


@dataclass(frozen=True)
class Modes:
    """Frequencies on a set of q points.

    Attributes
    ----------
    qpoints : (Q, 3) float
        In units of the primitive cell's reciprocal vectors.
    weights : (Q,) int
        Number of equivalent points that each stands for.
    frequencies_THz : (Q, M) float
        Ascending within each row.
    vibration : (Q, M) bool
        False for the three rigid translations at Gamma, True for every other mode.
    """

    qpoints: Floats
    weights: npt.NDArray[np.int64]
    frequencies_THz: Floats
    vibration: npt.NDArray[np.bool_]

    @property
    def minimum_THz(self) -> float:
        """Lowest signed frequency of a vibration (the rigid translations at Gamma are not vibrations)."""
        return float(self.frequencies_THz[self.vibration].min())

    @property
    def worst_q(self) -> tuple[float, float, float]:
        """The q point of the lowest vibration."""
        lowest = np.where(self.vibration, self.frequencies_THz, np.inf).min(axis=1)
        x, y, z = self.qpoints[int(np.argmin(lowest))]
        return float(x), float(y), float(z)

    @property
    def translation_THz(self) -> float:
        """Largest magnitude among the rigid translations at Gamma: 0 if the sum rule holds; nan without Gamma."""
        rigid = self.frequencies_THz[~self.vibration]
        return float(np.abs(rigid).max()) if rigid.size else float("nan")

    @property
    def count(self) -> int:
        """Number of vibrations, weights counted."""
        return int((self.weights[:, None] * self.vibration).sum())

    def imaginary(self, tolerance_THz: float) -> tuple[int, float]:
        """Return how many vibrations (weights counted) lie below the tolerance, and which fraction of all they are."""
        weights = np.broadcast_to(self.weights[:, None], self.frequencies_THz.shape)[self.vibration]
        below = self.frequencies_THz[self.vibration] < tolerance_THz
        count = int(weights[below].sum())
        return count, count / self.count


@dataclass(frozen=True)
class Bands:
    """Phonon bands along a path.

    Attributes
    ----------
    distances : list of (P,) float
        For each leg of the path, in 1/angstrom (without 2 pi); a leg starts where the one before ended.
    frequencies_THz : list of (P, M) float
    ticks : list of (position, label)
        Special points; two points at one position, where the path jumps, are joined as `U|K`.
    """

    distances: list[Floats]
    frequencies_THz: list[Floats]
    ticks: list[tuple[float, str]]


@dataclass(frozen=True)
class DensityOfStates:
    """`states_per_THz` (E,) at `frequencies_THz` (E,), normalised to the number of modes of the primitive cell."""

    frequencies_THz: Floats
    states_per_THz: Floats


@dataclass(frozen=True)
class ThermalProperties:
    """Harmonic thermal properties at constant volume, per mole of primitive cells; quantum statistics."""

    temperature_K: float
    heat_capacity_J_K_mol: float
    entropy_J_K_mol: float
    free_energy_kJ_mol: float


def build_phonopy(constants: ForceConstants, symprec_A: float = 1e-5) -> Phonopy:
    """Return a `Phonopy` that holds the given cells, masses and force constants.

    Raises
    ------
    PhononError
        If phonopy builds another supercell than the stored one, so that force constants and atoms would not match.
    """
    unitcell = constants.unitcell
    phonon = Phonopy(
        PhonopyAtoms(numbers=unitcell.numbers, positions=unitcell.positions, cell=unitcell.cell),
        supercell_matrix=constants.supercell_matrix,
        primitive_matrix=constants.primitive_matrix,
        symprec=symprec_A,
    )
    _check_supercell(phonon, constants.supercell)
    shape = (len(phonon.primitive), len(phonon.supercell), 3, 3)
    if constants.values.shape != shape:
        raise PhononError(f"force constants have shape {constants.values.shape}; the cells ask for {shape}")
    if not np.isfinite(constants.values).all():
        raise PhononError("force constants are not all finite")
    phonon.masses = constants.masses_u[phonon.primitive.p2s_map]
    phonon.force_constants = constants.values
    return phonon


def _check_supercell(phonon: Phonopy, stored: Structure) -> None:
    built = phonon.supercell
    if len(built) != len(stored) or not np.array_equal(built.numbers, stored.numbers):
        raise PhononError("phonopy builds a supercell with other atoms than the stored one; was the archive edited?")
    fractional = (built.positions - stored.positions) @ np.linalg.inv(stored.cell)
    deviation = np.abs((fractional - np.rint(fractional)) @ stored.cell).max()
    if deviation > _SAME_ATOM_A or np.abs(built.cell - stored.cell).max() > _SAME_ATOM_A:
        raise PhononError(
            f"phonopy's supercell deviates from the stored one by {deviation:.1e} A; was the archive edited?"
        )


def full_force_constants(phonon: Phonopy) -> Floats:
    """Return the (3N, 3N) force-constant matrix of the supercell in eV angstrom-2, atoms in phonopy's order."""
    full = compact_fc_to_full_fc(phonon.primitive, np.ascontiguousarray(phonon.force_constants, dtype=np.float64))
    atoms = len(full)
    return np.ascontiguousarray(full.transpose(0, 2, 1, 3)).reshape(3 * atoms, 3 * atoms)


def commensurate_modes(phonon: Phonopy) -> Modes:
    """Return the modes at the q points whose waves fit into the supercell: what the force constants know exactly."""
    to_supercell = np.rint(np.linalg.inv(phonon.primitive_matrix) @ phonon.supercell_matrix).astype(np.int64)
    qpoints = get_commensurate_points(to_supercell)
    frequencies = phonon.run_qpoints(qpoints).frequencies
    return _modes(phonon, qpoints, np.ones(len(qpoints), dtype=np.int64), frequencies)


def mesh_modes(phonon: Phonopy, length_A: float) -> Modes:
    """Return the modes on a Gamma-centred mesh, reduced by symmetry.

    Parameters
    ----------
    phonon : Phonopy
    length_A : float
        Density: along each reciprocal vector b (without 2 pi) the mesh has the next even number above length |b|
        points, so that it always holds the zone-boundary points at half reciprocal vectors.
    """
    reciprocal = np.linalg.norm(np.linalg.inv(phonon.primitive.cell), axis=0)
    points = np.maximum(2, 2 * np.ceil(np.round(length_A * reciprocal, 6) / 2).astype(int))
    mesh = phonon.run_mesh(points, is_gamma_center=True)
    return _modes(phonon, mesh.qpoints, mesh.weights.astype(np.int64), mesh.frequencies)


def _modes(phonon: Phonopy, qpoints: Floats, weights: npt.NDArray[np.int64], frequencies: Floats) -> Modes:
    vibration = np.ones(frequencies.shape, dtype=bool)
    gamma = np.flatnonzero(np.abs(qpoints).max(axis=1) < 1e-10)
    if gamma.size:
        vibration[gamma] = ~_translations_at_gamma(phonon)
    return Modes(np.array(qpoints), weights, np.array(frequencies), vibration)


def _translations_at_gamma(phonon: Phonopy) -> npt.NDArray[np.bool_]:
    """Mark, among the modes at Gamma in ascending order, the three that overlap most with rigid translations.

    By overlap, not by smallest frequency: a soft optical mode may be nearer to zero than an acoustic one that an
    imperfect sum rule has shifted.
    """
    _, vectors = np.linalg.eigh(phonon.get_dynamical_matrix_at_q([0.0, 0.0, 0.0]))
    mass = np.sqrt(phonon.primitive.masses)
    rigid = np.kron((mass / np.linalg.norm(mass))[:, None], np.eye(3))
    overlap = (np.abs(rigid.T @ vectors) ** 2).sum(axis=0)
    marked = np.zeros(len(overlap), dtype=bool)
    marked[np.argsort(overlap)[-3:]] = True
    return marked


def density_of_states(phonon: Phonopy) -> DensityOfStates:
    """Return the density of states (tetrahedron method) on the mesh that `mesh_modes` ran last."""
    dos = phonon.run_total_dos()
    return DensityOfStates(np.array(dos.frequency_points), np.array(dos.dos))


def thermal_properties(phonon: Phonopy, temperature_K: float) -> ThermalProperties:
    """Return thermal properties on the mesh that `mesh_modes` ran last; sensible only where no mode is imaginary.

    The three translations at Gamma, and any mode with a frequency below 0, are left out.
    """
    result = phonon.run_thermal_properties(temperatures=[temperature_K], exclude_gamma_acoustic=True)
    if result.heat_capacity is None or result.entropy is None or result.free_energy is None:
        raise PhononError("phonopy gave no thermal properties")
    return ThermalProperties(
        temperature_K=temperature_K,
        heat_capacity_J_K_mol=float(result.heat_capacity[0]),
        entropy_J_K_mol=float(result.entropy[0]),
        free_energy_kJ_mol=float(result.free_energy[0]),
    )


def bands(phonon: Phonopy, points: int = 200) -> Bands:
    """Return the bands along ASE's standard path (Setyawan and Curtarolo 2010) of the primitive cell's Bravais lattice.

    Parameters
    ----------
    phonon : Phonopy
    points : int
        Of the whole path, shared out by length; each leg has at least five.

    Raises
    ------
    PhononError
        If ASE knows no standard path for the lattice.
    """
    cell = Cell(phonon.primitive.cell)
    try:
        path = cell.bandpath(npoints=0)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise PhononError(f"no standard band path for this lattice: {error}") from error
    reciprocal = np.asarray(cell.reciprocal())
    parts = _parts(path.path)
    corners = path.special_points
    lengths = {leg: float(np.linalg.norm((corners[leg[1]] - corners[leg[0]]) @ reciprocal)) for leg in _legs(parts)}
    density = points / sum(lengths[leg] for leg in _legs(parts))
    distances: list[Floats] = []
    frequencies: list[Floats] = []
    ticks: list[tuple[float, str]] = []
    start = 0.0
    for part in parts:
        ticks = _with_tick(ticks, start, _label(part[0]))
        for first, last in itertools.pairwise(part):
            length = lengths[first, last]
            count = max(5, round(density * length) + 1)
            qpoints = np.linspace(corners[first], corners[last], count)
            distances.append(start + np.linspace(0.0, length, count))
            frequencies.append(np.array(phonon.run_qpoints(qpoints).frequencies))
            start += length
            ticks = _with_tick(ticks, start, _label(last))
    return Bands(distances, frequencies, ticks)


def _legs(parts: list[list[str]]) -> list[tuple[str, str]]:
    return [leg for part in parts for leg in itertools.pairwise(part)]


def _parts(path: str) -> list[list[str]]:
    """Split ASE's notation `GXWKGLUWLK,UX` (a point may carry digits: `H1`) into lists of point names."""
    parts: list[list[str]] = [[]]
    for character in path:
        if character == ",":
            parts.append([])
        elif character.isdigit():
            parts[-1][-1] += character
        else:
            parts[-1].append(character)
    return parts


def _label(name: str) -> str:
    return "Γ" if name == "G" else name


def _with_tick(ticks: list[tuple[float, str]], position: float, label: str) -> list[tuple[float, str]]:
    if ticks and ticks[-1][0] == position:
        return [*ticks[:-1], (position, f"{ticks[-1][1]}|{label}")]
    return [*ticks, (position, label)]
