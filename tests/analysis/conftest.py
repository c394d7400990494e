"""A crystal whose force constants are known in closed form: springs between near neighbours of an elpasolite."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
from ase.data import atomic_masses, atomic_numbers
from phonopy import Phonopy

from analysis.harmonic import ForceConstants
from driver.archive.records import Structure
from driver.structures.convert import from_phonopy, to_phonopy

Floats = npt.NDArray[np.float64]


def elpasolite(elements: tuple[str, str, str, str], a_A: float = 11.2, x: float = 0.25) -> Structure:
    """A2MM'X6 in its primitive cell, atoms in the order A A M M' X X X X X X."""
    cell = a_A * np.array([[0.0, 0.5, 0.5], [0.5, 0.0, 0.5], [0.5, 0.5, 0.0]])
    sites = [[0.25] * 3, [0.75] * 3, [0.0] * 3, [0.5] * 3]
    sites += [[x, 0, 0], [-x, 0, 0], [0, x, 0], [0, -x, 0], [0, 0, x], [0, 0, -x]]
    a, m, m_prime, halide = (atomic_numbers[element] for element in elements)
    numbers = np.array([a, a, m, m_prime] + 6 * [halide], dtype=np.int64)
    return Structure(numbers, a_A * np.array(sites), cell)


@dataclass(frozen=True)
class Springs:
    """A harmonic crystal in a supercell; `matrix` is its full (3N, 3N) force-constant matrix in eV angstrom-2."""

    constants: ForceConstants
    matrix: Floats

    def sample(self, temperature_K: float, frames: int, seed: int = 0) -> Floats:
        """Displacements (T, N, 3) drawn from the classical canonical distribution; modes at or below 0 stay at rest."""
        from ase import units

        mass = np.repeat(self.constants.masses_u, 3)
        eigenvalues, vectors = np.linalg.eigh(self.matrix / np.sqrt(np.outer(mass, mass)))
        moving = eigenvalues > 1e-8
        amplitude = np.zeros(len(mass))
        amplitude[moving] = np.sqrt(units.kB * temperature_K / eigenvalues[moving])
        noise = np.random.default_rng(seed).standard_normal((frames, len(mass)))
        return ((noise * amplitude) @ vectors.T / np.sqrt(mass)).reshape(frames, -1, 3)


def springs(unitcell: Structure, *, size: int = 2, transverse_eV_A2: float = 0.05, reach_A: float = 4.2) -> Springs:
    """Longitudinal springs that stiffen with proximity plus a transverse part, which destabilises where negative."""
    supercell_matrix = size * np.eye(3, dtype=np.int64)
    phonon = Phonopy(to_phonopy(unitcell), supercell_matrix, primitive_matrix=np.eye(3))
    supercell = from_phonopy(phonon.supercell)
    blocks = _spring_blocks(supercell, transverse_eV_A2, reach_A)
    atoms = len(supercell)
    constants = ForceConstants(
        unitcell=unitcell,
        supercell=supercell,
        masses_u=atomic_masses[supercell.numbers],
        supercell_matrix=supercell_matrix,
        primitive_matrix=np.eye(3),
        values=blocks[phonon.primitive.p2s_map],
    )
    return Springs(constants, blocks.transpose(0, 2, 1, 3).reshape(3 * atoms, 3 * atoms))


def _spring_blocks(supercell: Structure, transverse_eV_A2: float, reach_A: float) -> Floats:
    atoms = len(supercell)
    vectors = supercell.positions[None] - supercell.positions[:, None]
    fractional = vectors @ np.linalg.inv(supercell.cell)
    vectors = (fractional - np.rint(fractional)) @ supercell.cell
    distance = np.linalg.norm(vectors, axis=-1) + np.eye(atoms)
    near = (distance < reach_A) & ~np.eye(atoms, dtype=bool)
    direction = vectors / distance[..., None]
    outer = direction[..., :, None] * direction[..., None, :]
    stiffness = 3.0 * np.exp(-(distance - 2.8) / 0.6)
    blocks = -near.astype(float)[..., None, None] * (stiffness[..., None, None] * outer + transverse_eV_A2 * np.eye(3))
    blocks[np.arange(atoms), np.arange(atoms)] = -blocks.sum(axis=1)
    return np.asarray(blocks)


@pytest.fixture(scope="session")
def stable_crystal() -> Springs:
    """Cs2AgBiBr6 on springs: 80 atoms, no imaginary mode."""
    return springs(elpasolite(("Cs", "Ag", "Bi", "Br")))


@pytest.fixture(scope="session")
def unstable_crystal() -> Springs:
    """The same with repulsive transverse springs: imaginary modes."""
    return springs(elpasolite(("Cs", "Na", "Bi", "Cl")), transverse_eV_A2=-0.08)
