"""From the archive to what the physics needs: cells, force constants, sites, trajectories."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import spglib
from ase.data import chemical_symbols

from analysis.harmonic import ForceConstants
from driver.archive.h5md import Trajectory, read_trajectory, replicas
from driver.archive.reader import ArchiveView
from driver.archive.records import Structure
from driver.errors import LatdynError

Floats = npt.NDArray[np.float64]


class InputError(LatdynError):
    """The archive does not hold what a reduction needs; the message says what."""


@dataclass(frozen=True)
class Sites:
    """Groups of atoms that symmetry makes equivalent.

    Attributes
    ----------
    names : tuple of str, length n
        For each atom of the unit cell: the element, and where an element has several orbits also multiplicity and
        Wyckoff letter: `Br`, `K 8c`.
    space_group : int
        Number of that of the unit cell, as found.
    space_group_symbol : str
        Hermann-Mauguin.
    conventional_lengths_A : tuple of float
        Edges a, b, c of the conventional cell.
    """

    names: tuple[str, ...]
    space_group: int
    space_group_symbol: str
    conventional_lengths_A: tuple[float, float, float]


def displacement_group(view: ArchiveView, material: str, model: str, distance_A: float | None) -> str:
    """Return the name of the group of a set of displacements; with None, that of the only one there is.

    Raises
    ------
    InputError
        If there is none at that distance, or several and none is named.
    """
    present = sorted(name for name in view.group(material, model, "displace") if name.startswith("d0."))
    if distance_A is None:
        if len(present) == 1:
            return present[0]
        raise InputError(f"displacement sets {', '.join(present)} are there: say which with a distance")
    wanted = f"d{distance_A:.4f}"
    if wanted not in present:
        raise InputError(f"no displacements of {distance_A:g} A in the archive; there are {', '.join(present)}")
    return wanted


def force_constants(view: ArchiveView, material: str, model: str, distance_A: float | None) -> ForceConstants:
    """Read the force constants that displacements of `distance_A` gave, with the cells they refer to."""
    name = displacement_group(view, material, model, distance_A)

    def array(path: str) -> npt.NDArray[Any]:
        return view.read_array(material, model, "displace", path)

    return ForceConstants(
        unitcell=view.relaxed(material, model),
        supercell=supercell(view, material, model),
        masses_u=array("supercell/masses").astype(np.float64),
        supercell_matrix=array("supercell_matrix").astype(np.int64),
        primitive_matrix=array("primitive_matrix").astype(np.float64),
        values=array(f"{name}/force_constants").astype(np.float64),
    )


def supercell(view: ArchiveView, material: str, model: str) -> Structure:
    """Read the static supercell: the reference of displacements and of dynamics."""
    numbers, positions, cell = (
        view.read_array(material, model, "displace", f"supercell/{name}") for name in ("numbers", "positions", "cell")
    )
    return Structure(numbers.astype(np.int64), positions.astype(np.float64), cell.astype(np.float64))


def trajectories(view: ArchiveView, material: str, model: str) -> list[Trajectory]:
    """Read all replicas, every committed frame."""
    return [read_trajectory(view, material, model, replica) for replica in range(replicas(view, material, model))]


def sites(structure: Structure, symprec_A: float) -> Sites:
    """Find the symmetry orbits of a unit cell and name them.

    Raises
    ------
    InputError
        If spglib finds no symmetry at all, which it does for overlapping atoms.
    """
    fractional = structure.positions @ np.linalg.inv(structure.cell)
    cell: Any = (structure.cell, fractional, structure.numbers)
    dataset = spglib.get_symmetry_dataset(cell, symprec=symprec_A)
    if dataset is None:
        raise InputError(f"spglib finds no space group within {symprec_A:g} A: do atoms overlap?")
    orbits = np.asarray(dataset.crystallographic_orbits)
    # Atoms per conventional cell, which is what multiplicities count, over atoms in the cell at hand.
    scale = len(dataset.std_types) / len(structure)
    sizes = Counter(orbits.tolist())
    full: dict[int, str] = {}
    for orbit in dict.fromkeys(orbits.tolist()):
        symbol = chemical_symbols[structure.numbers[orbit]]
        full[orbit] = f"{symbol} {round(sizes[orbit] * scale)}{dataset.wyckoffs[orbit]}"
    a, b, c = np.linalg.norm(dataset.std_lattice, axis=1)
    return Sites(
        names=tuple(_shortest(full, orbits.tolist())),
        space_group=int(dataset.number),
        space_group_symbol=str(dataset.international),
        conventional_lengths_A=(float(a), float(b), float(c)),
    )


def _shortest(full: dict[int, str], orbits: Sequence[int]) -> list[str]:
    """Drop the Wyckoff position where the element alone is clear; number orbits that even the position leaves open."""
    elements = Counter(name.split()[0] for name in full.values())
    repeated = Counter(full.values())
    seen: Counter[str] = Counter()
    names: dict[int, str] = {}
    for orbit, name in full.items():
        seen[name] += 1
        element = name.split()[0]
        if elements[element] == 1:
            names[orbit] = element
        else:
            names[orbit] = f"{name} ({seen[name]})" if repeated[name] > 1 else name
    return [names[orbit] for orbit in orbits]
