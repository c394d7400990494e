"""Supercells: which matrix, and the atoms in phonopy's order. Everybody who needs a supercell goes through here.

The matrices of the settings have the supercell's lattice vectors in rows: supercell lattice = matrix @ lattice, vectors
in rows, as in `ase.build.make_supercell`. phonopy's have them in columns: supercell lattice = matrix.T @ lattice.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from phonopy.structure.cells import get_supercell

from driver.archive.records import Structure
from driver.errors import TaskError, UsageError
from driver.settings import SupercellSettings
from driver.structures.convert import from_phonopy, to_phonopy

_ROUNDING = 1e-6
"""Relative shortfall of a length that counts as reached: 3 x 5 A is 15 A in whatever rounding."""


def face_distances_A(cell: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the distances between opposite faces of a cell.

    Parameters
    ----------
    cell : (3, 3) float
        Lattice vectors in angstrom, one per row.

    Returns
    -------
    (3,) float
        In angstrom; entry i is the distance between the two faces that lattice vector i connects.
    """
    # The columns of the inverse are the reciprocal vectors, each normal to a pair of faces.
    return np.asarray(1.0 / np.linalg.norm(np.linalg.inv(cell), axis=0))


def supercell_matrix(structure: Structure, settings: SupercellSettings) -> npt.NDArray[np.int64]:
    """Return the integer matrix whose rows express the supercell's lattice vectors in those of the structure.

    Parameters
    ----------
    structure : Structure
        The unit cell.
    settings : SupercellSettings
        With `min_length_A`, the smallest diagonal matrix for which opposite faces are, in all three directions, at
        least that far apart; else `matrix`.

    Returns
    -------
    (3, 3) int64
        Supercell lattice = matrix @ lattice, vectors in rows; for phonopy see `phonopy_matrix`.

    Raises
    ------
    UsageError
        If the settings do not describe a supercell.
    """
    if settings.min_length_A is not None:
        if not settings.min_length_A > 0.0:
            raise UsageError(f"supercell.min_length_A={settings.min_length_A}: a length above 0 is needed")
        ratios = settings.min_length_A / face_distances_A(structure.cell)
        return np.diag(np.maximum(1, np.ceil(ratios * (1.0 - _ROUNDING)))).astype(np.int64)
    entries = np.array(settings.matrix, dtype=np.int64)
    if entries.shape not in ((3,), (9,)):
        raise UsageError(f"supercell.matrix={list(settings.matrix)}: 3 (diagonal) or 9 integers are needed")
    matrix = np.diag(entries) if entries.shape == (3,) else entries.reshape(3, 3)
    if round(np.linalg.det(matrix)) < 1:
        raise UsageError(f"supercell.matrix={list(settings.matrix)}: the determinant must be positive")
    return matrix


def phonopy_matrix(matrix: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return, of a matrix with the supercell's lattice vectors in rows, the one that phonopy takes, and stores.

    Parameters
    ----------
    matrix : (3, 3) int
        As `supercell_matrix` returns it.

    Returns
    -------
    (3, 3) int64
        Supercell lattice = returned matrix.T @ lattice.
    """
    return np.ascontiguousarray(matrix.T, dtype=np.int64)


def make_supercell(structure: Structure, matrix: npt.NDArray[np.int64]) -> Structure:
    """Return the supercell with its atoms in the order in which phonopy builds it.

    Parameters
    ----------
    structure : Structure
        The unit cell.
    matrix : (3, 3) int
        As `supercell_matrix` returns it.

    Raises
    ------
    TaskError
        If atoms lie on top of each other, so that the supercell's atoms cannot be told apart.
    """
    try:
        return from_phonopy(get_supercell(to_phonopy(structure), phonopy_matrix(matrix)))
    except RuntimeError as error:
        raise TaskError(f"no supercell can be built from {len(structure)} atoms: some of them overlap") from error
