"""The fast evaluator: native MACE inference on CPUs through symmetrix-xl, many structures at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from driver.engine.assembly import assemble, check_batch, forces_of, stress_of
from driver.engine.batch import StructureBatch
from driver.engine.interface import Evaluation
from driver.engine.neighbors import Edges, NeighborList


class SymmetrixEvaluator:
    """A MACE model in one precision, on the CPU.

    Parameters
    ----------
    native : object
        An evaluator of symmetrix-xl; see `driver.engine.preparation`.
    dtype : torch.dtype
        The precision that it was made for.

    Attributes
    ----------
    name : str
        "symmetrix".
    cutoff_A : float
        Range of the neighbour list that the model needs.
    atomic_numbers : tuple of int
        Elements that can be evaluated.
    """

    name = "symmetrix"

    def __init__(self, native: Any, *, dtype: torch.dtype) -> None:
        self._native = native
        self._reduce = getattr(native, "_reduce_atom_forces", None)
        self.dtype = dtype
        self.device = torch.device("cpu")
        self.cutoff_A = float(native.r_cut)
        self.atomic_numbers = tuple(int(z) for z in native.atomic_numbers)
        self._type = np.full(128, -1, dtype=np.int32)
        self._type[list(self.atomic_numbers)] = np.arange(len(self.atomic_numbers), dtype=np.int32)

    def evaluate(self, batch: StructureBatch, neighbors: NeighborList, *, stress: bool = False) -> Evaluation:
        """Evaluate all structures of a batch.

        A structure that cannot be evaluated (coordinates that are not finite, a collapsed cell, two atoms in one place)
        gets an energy, forces and a stress that are not finite, and affects no other.

        Parameters
        ----------
        batch : StructureBatch
            In the evaluator's dtype and on the CPU.
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
        types = self._type[batch.numbers.numpy()]
        if (types < 0).any():
            absent = sorted(set(batch.numbers.numpy()[types < 0].tolist()))
            raise ValueError(f"no elements {absent} in an evaluator of {self.atomic_numbers}")
        edges = neighbors.update(batch)
        vectors = edges.vectors(batch.positions.detach()).to(torch.float64).numpy()
        distances = np.sqrt(np.einsum("ij,ij->i", vectors, vectors))
        lost = self._without_direction(batch, edges, distances)
        senders = edges.senders.numpy().astype(np.int32)
        self._compute(types, edges, senders, vectors, distances)
        energy = torch.zeros(batch.size, dtype=torch.float64)
        energy.index_add_(0, batch.system, torch.from_numpy(np.array(self._native.node_energies, dtype=np.float64)))
        if not stress and self._reduce is not None:
            # Does in native code what `forces_of` does; edge by edge the results come as a Python list, slowly.
            forces = self._reduce(len(types), edges.receivers.numpy().astype(np.int32), senders)
            return assemble(batch, edges, energy, torch.from_numpy(forces.reshape(-1, 3)).to(self.dtype), lost=lost)
        # One row per edge; the native arrays may be longer than this graph, and the next call overwrites them.
        rows = np.asarray(self._native.node_forces).reshape(-1, 3)[: len(edges)]
        gradient = torch.from_numpy(rows.astype(np.float64)).to(self.dtype)
        tensor = stress_of(batch, edges, gradient) if stress else None
        return assemble(batch, edges, energy, forces_of(batch, edges, gradient), tensor, lost)

    def _compute(
        self, types: np.ndarray, edges: Edges, senders: np.ndarray, vectors: np.ndarray, distances: np.ndarray
    ) -> None:
        """Have the native evaluator compute; its vectors point from the receiver to the sender."""
        self._native.compute_node_energies_forces(
            len(types),
            types,
            np.bincount(edges.receivers.numpy(), minlength=len(types)).astype(np.int32),
            senders,
            types[senders],
            -vectors.ravel(),
            distances,
        )

    @staticmethod
    def _without_direction(batch: StructureBatch, edges: Edges, distances: np.ndarray) -> torch.Tensor | None:
        """Tell which structures (B,) have two atoms in one place, and give such pairs a harmless distance.

        The native code is compiled for arithmetic without infinities and NaN: it returns numbers where there are none.
        """
        flat = distances == 0.0
        if not flat.any():
            return None
        lost = torch.zeros(batch.size, dtype=torch.bool)
        lost[batch.system[edges.receivers[torch.from_numpy(flat)]]] = True
        distances[flat] = 1.0
        return lost
