"""What an evaluator is: batched energies, forces and, where asked, stress of many periodic structures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch

from driver.engine.batch import StructureBatch
from driver.engine.neighbors import NeighborList


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
    """"torch", "torch+cuequivariance" or "symmetrix"."""
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
