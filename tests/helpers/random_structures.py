"""Structures without any symmetry, for tests."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from driver.archive.records import Structure


def random_structure(elements: Sequence[int], atoms: int, *, seed: int, volume_per_atom_A3: float = 20.0) -> Structure:
    """Return a distorted grid of random atoms in a slightly triclinic cell; no two atoms are close."""
    random = np.random.default_rng(seed)
    side = (atoms * volume_per_atom_A3) ** (1 / 3)
    cell = side * (np.eye(3) + random.uniform(-0.06, 0.06, (3, 3)))
    points = int(np.ceil(atoms ** (1 / 3)))
    grid = np.stack(np.meshgrid(*[np.arange(points) / points] * 3), axis=-1).reshape(-1, 3)[:atoms]
    positions = grid @ cell + random.normal(0.0, 0.15, (atoms, 3))
    return Structure(random.choice(elements, atoms).astype(np.int64), positions, cell)
