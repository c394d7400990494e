"""What an evaluator is: batched energies, forces and, where asked, stress of many periodic structures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from driver.archive.records import Structure
from driver.engine.neighbors import NeighborList


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


@dataclass(frozen=True)
class Evaluation:
    """Result of one evaluation.

    Attributes
    ----------
    energy : (B,) float64
        Potential energies in eV.
    forces : (N, 3)
        In eV/angstrom.
    stress : (B, 3, 3) or None
        In eV/angstrom^3; ASE's sign (tension positive).
    """

    energy: torch.Tensor
    forces: torch.Tensor
    stress: torch.Tensor | None = None


class Evaluator(Protocol):
    """A model on a device in one precision."""

    name: str
    """"torch" or "symmetrix"."""
    dtype: torch.dtype
    device: torch.device
    cutoff_A: float
    atomic_numbers: tuple[int, ...]

    def evaluate(self, batch: StructureBatch, neighbors: NeighborList, *, stress: bool = False) -> Evaluation:
        """Evaluate all structures of a batch.

        Parameters
        ----------
        batch : StructureBatch
        neighbors : NeighborList
            The caller's list for this batch; brought up to date here, so that it is rebuilt only when an atom has
            moved half of the skin.
        stress : bool
            Also compute the stress; costs 10-15 %.
        """
        ...
