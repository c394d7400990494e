from __future__ import annotations

import numpy as np
from ase.build import bulk
from ase.spacegroup import crystal

from driver.structures.convert import from_ase, from_phonopy, to_ase, to_phonopy


def test_ase_round_trip_keeps_atoms_outside_the_cell_and_copies():
    atoms = crystal(["Na", "Cl"], [(0, 0, 0), (0.5, 0.5, 0.5)], spacegroup=225, cellpar=[5.6] * 3 + [90] * 3)
    atoms.positions[0] -= 7.0
    structure = from_ase(atoms)
    back = to_ase(structure)
    assert back.pbc.all()
    np.testing.assert_array_equal(back.positions, atoms.positions)
    np.testing.assert_array_equal(back.cell.array, atoms.cell.array)
    np.testing.assert_array_equal(back.numbers, atoms.numbers)
    back.positions[0] = 0.0
    atoms.positions[1] = 0.0
    assert (structure.positions[0] != 0.0).any()
    assert (structure.positions[1] != 0.0).any()


def test_phonopy_round_trip_has_the_masses_of_ase():
    atoms = bulk("NaCl", "rocksalt", a=5.64)
    phonopy_atoms = to_phonopy(from_ase(atoms))
    np.testing.assert_array_equal(phonopy_atoms.masses, atoms.get_masses())
    structure = from_phonopy(phonopy_atoms)
    np.testing.assert_allclose(structure.positions, atoms.positions, atol=1e-12)
    np.testing.assert_array_equal(structure.numbers, atoms.numbers)
    assert structure.numbers.dtype == np.int64
