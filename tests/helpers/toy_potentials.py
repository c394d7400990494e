"""Potentials with closed forms, behind the interface of an evaluator."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from ase.data import chemical_symbols

from driver.archive.records import Structure
from driver.batch_size import BatchSizer
from driver.engine.batch import StructureBatch
from driver.engine.choice import Choice
from driver.engine.interface import Evaluation
from driver.engine.neighbors import NeighborList
from driver.errors import TaskError
from driver.models import ModelFile


class _Toy:
    """What toy evaluators have in common: any element, any precision, on the CPU."""

    name = "toy"
    atomic_numbers = tuple(range(1, 100))
    cutoff_A = 3.0

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        self.dtype = dtype
        self.device = torch.device("cpu")
        self.evaluations = 0


class HarmonicCrystal(_Toy):
    """E = u phi u / 2 with u = R - R0; all structures with n atoms share one R0 and one phi.

    Parameters
    ----------
    references : dict
        n -> (R0 (n, 3) in angstrom, phi (3n, 3n) in eV/angstrom^2).
    """

    def __init__(
        self, references: dict[int, tuple[np.ndarray, np.ndarray]], dtype: torch.dtype = torch.float64
    ) -> None:
        super().__init__(dtype)
        self._references = {
            n: (torch.as_tensor(r0, dtype=dtype).reshape(-1), torch.as_tensor(phi, dtype=dtype))
            for n, (r0, phi) in references.items()
        }

    def evaluate(self, batch: StructureBatch, neighbors: NeighborList, *, stress: bool = False) -> Evaluation:
        self.evaluations += 1
        assert batch.positions.dtype == self.dtype
        energy = torch.zeros(batch.size, dtype=torch.float64)
        forces = torch.empty_like(batch.positions)
        starts = np.concatenate([[0], np.cumsum(batch.counts)])
        for n in set(batch.counts):
            which = [i for i, count in enumerate(batch.counts) if count == n]
            rows = (torch.as_tensor(starts[which])[:, None] + torch.arange(n)).reshape(-1)
            r0, phi = self._references[n]
            u = batch.positions[rows].reshape(-1, 3 * n) - r0
            # Structure by structure, as matrix products of different widths round differently.
            f = -torch.stack([phi @ x for x in u]) if len(which) <= 4 else -(u @ phi)
            energy[which] = -0.5 * (u * f).sum(dim=1).double()
            forces[rows] = f.reshape(-1, 3)
        return Evaluation(energy, forces)


class QuarticDimers(_Toy):
    """Dimers with E = (q / 4) sum over components of (d - d0)^4, d the vector from atom 0 to atom 1, d0 = (2, 0, 0)."""

    def __init__(self, q_eV_A4: float, dtype: torch.dtype = torch.float64) -> None:
        super().__init__(dtype)
        self.q = q_eV_A4

    def evaluate(self, batch: StructureBatch, neighbors: NeighborList, *, stress: bool = False) -> Evaluation:
        self.evaluations += 1
        pairs = batch.positions.reshape(-1, 2, 3)
        x = pairs[:, 1] - pairs[:, 0] - torch.tensor([2.0, 0.0, 0.0], dtype=self.dtype)
        force = -self.q * x**3
        forces = torch.stack([-force, force], dim=1).reshape(-1, 3)
        return Evaluation((0.25 * self.q * x**4).sum(dim=1).double(), forces)


class LennardJones(_Toy):
    """Lennard-Jones with a cutoff, energy and force shifted to zero there; parameters are the same for all elements."""

    def __init__(
        self,
        epsilon_eV: float = 0.0104,
        sigma_A: float = 3.4,
        cutoff_A: float = 7.0,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__(dtype)
        self.cutoff_A = cutoff_A
        self._epsilon, self._sigma = epsilon_eV, sigma_A

    def _pair(self, r: torch.Tensor) -> torch.Tensor:
        s6 = (self._sigma / r) ** 6
        return 4.0 * self._epsilon * (s6 * s6 - s6)

    def evaluate(self, batch: StructureBatch, neighbors: NeighborList, *, stress: bool = False) -> Evaluation:
        self.evaluations += 1
        edges = neighbors.update(batch)
        vectors = edges.vectors(batch.positions).requires_grad_(True)
        rc = torch.tensor(self.cutoff_A, dtype=self.dtype, requires_grad=True)
        at_cutoff = self._pair(rc)
        (slope,) = torch.autograd.grad(at_cutoff, rc)
        with torch.enable_grad():
            r = vectors.norm(dim=1)
            pair = 0.5 * (self._pair(r) - at_cutoff.detach() - slope * (r - self.cutoff_A))
            (gradient,) = torch.autograd.grad(pair.sum(), vectors)
        of_edge = batch.system[edges.receivers]
        energy = torch.zeros(batch.size, dtype=torch.float64).index_add_(0, of_edge, pair.detach().double())
        forces = torch.zeros_like(batch.positions).index_add_(0, edges.senders, gradient)
        forces.index_add_(0, edges.receivers, -gradient)
        tensor = None
        if stress:
            products = vectors.detach()[:, :, None] * gradient[:, None, :]
            tensor = torch.zeros(batch.size, 3, 3, dtype=self.dtype).index_add_(0, of_edge, products)
            tensor = tensor / torch.linalg.det(batch.cells).abs()[:, None, None]
        if edges.unusable:
            energy[list(edges.unusable)] = torch.nan
        return Evaluation(energy, forces, tensor)


class ToyEngine:
    """Stands in for `Engine`: makes toy evaluators; elements in `lacking` are unknown to every model."""

    def __init__(
        self, make: Callable[[torch.dtype], _Toy], lacking: Iterable[int] = (), capacity_atoms: int = 200
    ) -> None:
        self._make = make
        self._lacking = set(lacking)
        self.evaluators: list[_Toy] = []
        self.sizer = BatchSizer(capacity_atoms, fixed=True)

    def batch_sizer(self, model: ModelFile, dtype: str) -> BatchSizer:
        return self.sizer

    def check_elements(self, model: ModelFile, numbers: Iterable[int]) -> None:
        unknown = sorted(self._lacking & {int(z) for z in numbers})
        if unknown:
            raise TaskError(f"model {model.key} does not know {', '.join(chemical_symbols[z] for z in unknown)}")

    def evaluator(self, model: ModelFile, numbers: Iterable[int], dtype: str) -> _Toy:
        self.check_elements(model, numbers)
        self.evaluators.append(self._make(getattr(torch, dtype)))
        return self.evaluators[-1]

    def choose(
        self, model: ModelFile, structures: Sequence[Structure], dtype: str, stage: str = "dynamics"
    ) -> list[Choice]:
        evaluator = self.evaluator(model, [z for s in structures for z in s.numbers], dtype)
        return [Choice(evaluator, f"a toy for {stage}") for _ in structures]
