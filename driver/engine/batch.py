"""Many periodic structures side by side, as tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from driver.archive.records import Structure


@dataclass(frozen=True)
class StructureBatch:
    """Many periodic structures side by side.

    Attributes
    ----------
    positions : (N, 3) float
        Cartesian positions of all atoms in angstrom; need not lie inside the cells.
    cells : (B, 3, 3) float
        Lattice vectors in angstrom, one per row.
    numbers : (N,) int64
        Atomic numbers.
    system : (N,) int64
        Index of the structure that an atom belongs to; ascending.
    counts : tuple of int
        Atoms per structure.
    """

    positions: torch.Tensor
    cells: torch.Tensor
    numbers: torch.Tensor
    system: torch.Tensor
    counts: tuple[int, ...]

    @property
    def size(self) -> int:
        """Number of structures B."""
        return len(self.counts)

    @classmethod
    def from_structures(
        cls, structures: Sequence[Structure], *, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> StructureBatch:
        """Concatenate structures in their order."""
        counts = tuple(len(s) for s in structures)
        return cls(
            positions=torch.as_tensor(np.concatenate([s.positions for s in structures]), dtype=dtype, device=device),
            cells=torch.as_tensor(np.stack([s.cell for s in structures]), dtype=dtype, device=device),
            numbers=torch.as_tensor(np.concatenate([s.numbers for s in structures]), dtype=torch.int64, device=device),
            system=torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)).to(device),
            counts=counts,
        )

    def moved(self, positions: torch.Tensor) -> StructureBatch:
        """Return the same structures with other positions, (N, 3) in angstrom."""
        return StructureBatch(positions, self.cells, self.numbers, self.system, self.counts)
