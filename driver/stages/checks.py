"""Is this a crystal at all? Asked before native libraries see it: spglib crashes on coordinates that are not finite."""

from __future__ import annotations

import numpy as np
from ase.data import chemical_symbols
from ase.neighborlist import neighbor_list

from driver.archive.records import Structure
from driver.errors import TaskError
from driver.structures.convert import to_ase
from driver.structures.supercells import face_distances_A

OVERLAP_A = 0.5
"""Atoms closer than this are a mistake, not a geometry to start from."""

MIN_VOLUME_A3 = 0.5
"""Volume per atom that no solid undercuts (diamond: 5.7)."""

MIN_HEIGHT_A = 0.1
"""Distance of opposite faces below which a cell is too skewed to be searched for pairs."""


def check_structure(structure: Structure) -> None:
    """Refuse what is no crystal.

    Raises
    ------
    TaskError
        If a coordinate is not finite, the cell has no volume, or two atoms or periodic images are closer than
        0.5 angstrom; names them.
    """
    if not np.isfinite(structure.cell).all():
        raise TaskError("the cell has entries that are not finite")
    bad = np.flatnonzero(~np.isfinite(structure.positions).all(axis=1))
    if len(bad):
        raise TaskError(f"the position of atom {_name(structure, bad[0])} is not finite (numbers count from 0)")
    if structure.volume < MIN_VOLUME_A3 * len(structure):
        raise TaskError(f"the cell has a volume of {structure.volume:.3g} A^3 for {len(structure)} atoms: mend it")
    if face_distances_A(structure.cell).min() < MIN_HEIGHT_A:
        raise TaskError("the cell is so skewed that two of its faces nearly meet: give a reduced one")
    _check_overlap(structure)


def _check_overlap(structure: Structure) -> None:
    first, second, distances = neighbor_list("ijd", to_ase(structure), OVERLAP_A)
    if len(distances) == 0:
        return
    closest = int(np.argmin(distances))
    i, j = sorted((int(first[closest]), int(second[closest])))
    pair = f"atoms {_name(structure, i)} and {_name(structure, j)}"
    if i == j:
        pair = f"atom {_name(structure, i)} and its periodic image"
    raise TaskError(f"{pair} are {distances[closest]:.3f} A apart: mend the structure (numbers count from 0)")


def _name(structure: Structure, atom: int) -> str:
    return f"{atom} ({chemical_symbols[structure.numbers[atom]]})"
