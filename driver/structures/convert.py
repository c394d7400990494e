"""`Structure` to and from the objects of ASE and phonopy.

Masses are always ASE's (IUPAC 2016), so that phonons and dynamics agree; phonopy's own table differs for some elements
(chlorine by 1e-4 relative).
"""

from __future__ import annotations

import numpy as np
from ase import Atoms
from ase.data import atomic_masses
from phonopy.structure.atoms import PhonopyAtoms

from driver.archive.records import Structure


def to_ase(structure: Structure) -> Atoms:
    """Return a periodic `ase.Atoms` with the same atoms in the same order (arrays are copied)."""
    return Atoms(numbers=structure.numbers, positions=structure.positions, cell=structure.cell, pbc=True)


def from_ase(atoms: Atoms) -> Structure:
    """Return atoms, positions and cell of an `ase.Atoms` (arrays are copied); positions are not wrapped."""
    return Structure(
        numbers=np.array(atoms.numbers, dtype=np.int64),
        positions=np.array(atoms.positions, dtype=np.float64),
        cell=np.array(atoms.cell.array, dtype=np.float64),
    )


def to_phonopy(structure: Structure) -> PhonopyAtoms:
    """Return a `PhonopyAtoms` with the same atoms in the same order and the masses of ASE in u."""
    return PhonopyAtoms(
        numbers=structure.numbers,
        positions=structure.positions,
        cell=structure.cell,
        masses=atomic_masses[structure.numbers],
    )


def from_phonopy(atoms: PhonopyAtoms) -> Structure:
    """Return atoms, positions and cell of a `PhonopyAtoms` (arrays are copied)."""
    return Structure(
        numbers=np.array(atoms.numbers, dtype=np.int64),
        positions=np.array(atoms.positions, dtype=np.float64),
        cell=np.array(atoms.cell, dtype=np.float64),
    )
