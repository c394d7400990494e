"""The reference evaluator: MACE in torch, many structures at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from mace.modules.models import MACE

from driver.engine.assembly import assemble, check_batch, forces_of, stress_of
from driver.engine.batch import StructureBatch
from driver.engine.contraction import ElementGroups, tabulate_contractions
from driver.engine.convolution import fuse_convolutions
from driver.engine.interface import Evaluation
from driver.engine.neighbors import Edges, NeighborList


@dataclass(frozen=True)
class _Layout:
    """What the model needs of a batch that stays the same while atoms move."""

    numbers: torch.Tensor
    counts: tuple[int, ...]
    inputs: dict[str, torch.Tensor]


class TorchEvaluator:
    """A MACE model on a device in one precision.

    Parameters
    ----------
    model : MACE
        Cut to the elements at hand or not, in double precision; taken over (moved, converted and rearranged in place).
    head : int
        Index of the model's head.
    dtype : torch.dtype
    device : torch.device
    name : str
        Tells evaluators of this kind apart.

    Attributes
    ----------
    name : str
        For the archive.
    cutoff_A : float
        Range of the neighbour list that the model needs.
    atomic_numbers : tuple of int
        Elements that can be evaluated.
    """

    def __init__(
        self, model: MACE, *, head: int, dtype: torch.dtype, device: torch.device, name: str = "torch"
    ) -> None:
        self.name = name
        self.dtype = dtype
        self.device = device
        self.cutoff_A = float(model.r_max)
        self.atomic_numbers = tuple(int(z) for z in model.atomic_numbers)
        self._groups = ElementGroups()
        model = fuse_convolutions(tabulate_contractions(model, self._groups))
        self._model = model.to(device=device, dtype=dtype).eval().requires_grad_(False)
        self._head = head
        self._element = torch.full((128,), -1, dtype=torch.int64, device=device)
        self._element[list(self.atomic_numbers)] = torch.arange(len(self.atomic_numbers), device=device)
        self._layout: _Layout | None = None

    def evaluate(self, batch: StructureBatch, neighbors: NeighborList, *, stress: bool = False) -> Evaluation:
        """Evaluate all structures of a batch.

        A structure that cannot be evaluated (coordinates that are not finite, a collapsed cell, two atoms in one place)
        gets an energy, forces and a stress that are not finite, and affects no other.

        Parameters
        ----------
        batch : StructureBatch
            In the evaluator's dtype and on its device.
        neighbors : NeighborList
            The caller's list for this batch, of the evaluator's cutoff; brought up to date here.
        stress : bool
            Also compute the stress.

        Raises
        ------
        ValueError
            Batch or neighbour list do not fit the evaluator, or an element is not among `atomic_numbers`.
        """
        check_batch(batch, self.dtype, self.device, neighbors.cutoff_A, self.cutoff_A)
        edges = neighbors.update(batch)
        energy, gradient = self._differentiate(batch, edges)
        tensor = stress_of(batch, edges, gradient) if stress else None
        return assemble(batch, edges, energy, forces_of(batch, edges, gradient), tensor)

    def _differentiate(self, batch: StructureBatch, edges: Edges) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the energies (B,), float64, and the derivatives (E, 3) of their sum by the edge vectors."""
        shifts = edges.shifts_A.detach().requires_grad_(True)
        inputs = {
            **self._constant_inputs(batch),
            "positions": batch.positions.detach(),
            "cell": batch.cells,
            "edge_index": torch.stack((edges.senders, edges.receivers)),
            "shifts": shifts,
        }
        with torch.enable_grad():
            output = self._model(inputs, compute_force=False)
            total = output["energy"]
        (gradient,) = torch.autograd.grad([total], [shifts], [torch.ones_like(total)])
        # The atoms' energies are summed here, in double precision: in float32 their sum loses digits.
        energy = torch.zeros(batch.size, dtype=torch.float64, device=self.device)
        energy.index_add_(0, batch.system, output["node_energy"].detach().to(torch.float64))
        return energy, gradient

    def _constant_inputs(self, batch: StructureBatch) -> dict[str, torch.Tensor]:
        """Return the model's inputs that do not depend on positions, made once per batch."""
        layout = self._layout
        if layout is None or layout.numbers is not batch.numbers or layout.counts != batch.counts:
            element = self._element[batch.numbers]
            if bool((element < 0).any()):
                absent = sorted(set(batch.numbers[element < 0].tolist()))
                raise ValueError(f"no elements {absent} in an evaluator of {self.atomic_numbers}")
            self._groups.assign(element, len(self.atomic_numbers))
            inputs = {
                "node_attrs": torch.nn.functional.one_hot(element, len(self.atomic_numbers)).to(self.dtype),
                "batch": batch.system,
                "ptr": torch.zeros(batch.size + 1, dtype=torch.int64, device=self.device),
                "head": torch.full((batch.size,), self._head, dtype=torch.int64, device=self.device),
            }
            self._layout = layout = _Layout(batch.numbers, batch.counts, inputs)
        return layout.inputs
