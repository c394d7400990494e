from __future__ import annotations

import numpy as np
import pytest
from ase.build import bulk
from ase.build import make_supercell as ase_supercell
from ase.geometry import cell_to_cellpar
from phonopy import Phonopy
from phonopy.structure.cells import get_supercell

from driver.archive.records import Structure
from driver.errors import TaskError, UsageError
from driver.settings import SupercellSettings
from driver.structures.convert import from_ase, to_ase, to_phonopy
from driver.structures.supercells import face_distances_A, make_supercell, phonopy_matrix, supercell_matrix

ROCKSALT = from_ase(bulk("NaCl", "rocksalt", a=5.64))
TRICLINIC = Structure(np.array([14]), np.zeros((1, 3)), np.array([[3.0, 0.0, 0.0], [1.4, 4.0, 0.0], [-0.9, 1.1, 5.0]]))


def test_matrix_is_taken_as_given():
    np.testing.assert_array_equal(supercell_matrix(ROCKSALT, SupercellSettings((2, 3, 1))), np.diag([2, 3, 1]))
    rows = (-1, 1, 1, 1, -1, 1, 1, 1, -1)
    matrix = supercell_matrix(ROCKSALT, SupercellSettings(rows))
    np.testing.assert_array_equal(matrix.ravel(), rows)
    # fcc primitive -> conventional cube
    np.testing.assert_allclose(
        cell_to_cellpar(make_supercell(ROCKSALT, matrix).cell), [5.64] * 3 + [90.0] * 3, rtol=1e-12
    )


@pytest.mark.parametrize("matrix", [(2, 2), (2, 2, 2, 2), (0, 1, 1), (1, 1, -1), (0, 1, 0, 1, 0, 0, 0, 0, 1)])
def test_matrix_that_is_no_supercell_is_refused(matrix):
    with pytest.raises(UsageError, match=r"supercell\.matrix"):
        supercell_matrix(ROCKSALT, SupercellSettings(matrix))


def test_face_distances_are_heights_over_faces():
    a, b, c = TRICLINIC.cell
    volume = abs(np.dot(a, np.cross(b, c)))
    expected = [volume / np.linalg.norm(np.cross(*pair)) for pair in ((b, c), (c, a), (a, b))]
    np.testing.assert_allclose(face_distances_A(TRICLINIC.cell), expected)


@pytest.mark.parametrize("min_length_A", [2.0, 7.5, 12.0, 20.0])
def test_min_length_gives_the_smallest_diagonal_matrix(min_length_A):
    matrix = supercell_matrix(TRICLINIC, SupercellSettings(min_length_A=min_length_A))
    assert (matrix == np.diag(np.diag(matrix))).all()
    assert (face_distances_A(matrix @ TRICLINIC.cell) >= min_length_A).all()
    for axis in range(3):
        smaller = matrix.copy()
        smaller[axis, axis] -= 1
        assert smaller[axis, axis] == 0 or face_distances_A(smaller @ TRICLINIC.cell)[axis] < min_length_A


def test_min_length_that_is_met_exactly_needs_no_further_cell():
    cube = from_ase(bulk("Si", "sc", a=0.1 * 3))
    np.testing.assert_array_equal(supercell_matrix(cube, SupercellSettings(min_length_A=0.9)), np.diag([3, 3, 3]))
    with pytest.raises(UsageError, match="min_length_A"):
        supercell_matrix(cube, SupercellSettings(min_length_A=0.0))


SKEWED = (1, 1, 0, 0, 2, 0, 0, -1, 2)
"""Of determinant 4; its transpose spans another lattice."""


@pytest.mark.parametrize("structure", [TRICLINIC, ROCKSALT, from_ase(bulk("Zn", "hcp", a=2.66, c=4.95))])
@pytest.mark.parametrize("matrix", [SKEWED, (2, 0, 0, 1, 1, 0, 0, 0, 1), (1, -1, 0, 1, 1, 0, 0, 0, 2), (2, 1, 3)])
def test_the_rows_of_the_matrix_are_the_lattice_vectors(structure, matrix):
    """As ASE has it, lattice and atoms; phonopy's own matrix is the transpose."""
    integers = supercell_matrix(structure, SupercellSettings(matrix))
    supercell = make_supercell(structure, integers)
    np.testing.assert_allclose(supercell.cell, integers @ structure.cell, atol=1e-12)
    theirs = phonopy_matrix(integers)
    np.testing.assert_allclose(supercell.cell, theirs.T @ structure.cell, atol=1e-12)
    np.testing.assert_array_equal(supercell.positions, get_supercell(to_phonopy(structure), theirs).positions)
    expected = ase_supercell(to_ase(structure), integers)
    np.testing.assert_allclose(supercell.cell, expected.cell, atol=1e-12)
    assert len(supercell) == len(expected) == round(np.linalg.det(integers)) * len(structure)
    for number, position in zip(expected.numbers, expected.positions, strict=True):
        offsets = (supercell.positions - position) @ np.linalg.inv(supercell.cell)
        (same,) = np.flatnonzero(np.abs(offsets - np.rint(offsets)).max(axis=1) < 1e-8)
        assert supercell.numbers[same] == number


def test_a_transposed_matrix_is_another_supercell():
    rows = np.reshape(SKEWED, (3, 3))
    cells = [make_supercell(TRICLINIC, matrix).cell for matrix in (rows, rows.T)]
    change = cells[0] @ np.linalg.inv(cells[1])
    assert np.abs(change - np.rint(change)).max() > 0.1, "or the tests above could not tell"


@pytest.mark.filterwarnings("ignore:Warning. Point group")
@pytest.mark.parametrize("matrix", [(2, 2, 2), (3, 1, 2), (-1, 1, 1, 1, -1, 1, 1, 1, -1), SKEWED])
def test_atoms_are_in_the_order_of_phonopy(matrix):
    integers = supercell_matrix(ROCKSALT, SupercellSettings(matrix))
    supercell = make_supercell(ROCKSALT, integers)
    expected = Phonopy(to_phonopy(ROCKSALT), phonopy_matrix(integers), primitive_matrix=np.eye(3)).supercell
    np.testing.assert_array_equal(supercell.numbers, expected.numbers)
    np.testing.assert_array_equal(supercell.positions, expected.positions)
    np.testing.assert_array_equal(supercell.cell, expected.cell)


def test_overlapping_atoms_are_one_bad_material_not_a_crash():
    doubled = Structure(np.array([11, 11]), np.zeros((2, 3)), ROCKSALT.cell)
    with pytest.raises(TaskError, match="overlap"):
        make_supercell(doubled, np.array([[-1, 1, 1], [1, -1, 1], [1, 1, -1]]))
