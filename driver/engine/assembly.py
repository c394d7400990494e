"""From derivatives by edge vectors to forces and stress: what all evaluators do alike.

E depends on positions only through the edge vectors r = R_receiver - R_sender + shift, so dE/dr gives all.
"""

from __future__ import annotations

import torch

from driver.engine.batch import StructureBatch
from driver.engine.interface import Evaluation
from driver.engine.neighbors import Edges


def assemble(
    batch: StructureBatch,
    edges: Edges,
    energy: torch.Tensor,
    forces: torch.Tensor,
    stress: torch.Tensor | None = None,
    lost: torch.Tensor | None = None,
) -> Evaluation:
    """Return the evaluation of a batch, with NaN for structures of which nothing is known.

    Parameters
    ----------
    batch : StructureBatch
    edges : Edges
    energy : (B,) float64
        In eV.
    forces : (N, 3)
        In eV/angstrom.
    stress : (B, 3, 3), optional
        In eV/angstrom^3.
    lost : (B,) bool, optional
        Structures of which nothing is known, besides those that `edges` cannot be made for.
    """
    if edges.unusable:
        lost = torch.zeros(batch.size, dtype=torch.bool, device=forces.device) if lost is None else lost
        lost[list(edges.unusable)] = True
    if lost is not None:
        energy[lost] = torch.nan
        forces[lost[batch.system]] = torch.nan
        if stress is not None:
            stress[lost] = torch.nan
    return Evaluation(energy, forces, stress)


def forces_of(batch: StructureBatch, edges: Edges, gradient: torch.Tensor) -> torch.Tensor:
    """Return forces (N, 3) from dE/dr (E, 3), both in eV/angstrom."""
    forces = torch.zeros(batch.positions.shape, dtype=gradient.dtype, device=gradient.device)
    forces.index_add_(0, edges.senders, gradient)
    return forces.index_add_(0, edges.receivers, gradient, alpha=-1)


def check_batch(
    batch: StructureBatch, dtype: torch.dtype, device: torch.device, list_cutoff_A: float, cutoff_A: float
) -> None:
    """Raise ValueError if an evaluator of this precision, device and cutoff cannot take a batch and its neighbours."""
    if batch.positions.dtype != dtype or batch.positions.device != device:
        have = f"{batch.positions.dtype} on {batch.positions.device}"
        raise ValueError(f"the batch is {have}, the evaluator {dtype} on {device}")
    if list_cutoff_A < cutoff_A:
        raise ValueError(f"the neighbour list ends at {list_cutoff_A} A, the model at {cutoff_A} A")


def stress_of(batch: StructureBatch, edges: Edges, gradient: torch.Tensor) -> torch.Tensor:
    """Return the stress (B, 3, 3) in eV/angstrom^3: sum over edges of r (x) dE/dr, symmetrised, by volume.

    `gradient` is dE/dr (E, 3) in eV/angstrom.
    """
    vectors = edges.vectors(batch.positions.detach())
    virial = torch.zeros(batch.size, 9, dtype=gradient.dtype, device=gradient.device)
    products = (vectors.unsqueeze(2) * gradient.unsqueeze(1)).view(-1, 9)
    virial.index_add_(0, batch.system.index_select(0, edges.receivers), products)
    virial = virial.view(-1, 3, 3)
    volume = torch.linalg.det(batch.cells).abs().view(-1, 1, 1)
    return 0.5 * (virial + virial.transpose(1, 2)) / volume
