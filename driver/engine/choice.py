"""Is the fast evaluator good enough? Compared with the reference before it is trusted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from driver.archive.records import Structure
from driver.engine.batch import StructureBatch
from driver.engine.interface import Evaluation, Evaluator
from driver.engine.neighbors import NeighborList
from driver.settings import EngineSettings

RATTLE_A = 0.1
"""How far the atoms of a probe are moved, so that there are forces to compare: about the amplitude of dynamics."""


@dataclass(frozen=True)
class Choice:
    """An evaluator, and why it is this one."""

    evaluator: Evaluator
    reason: str


@dataclass(frozen=True)
class Agreement:
    """How two evaluators compare on a structure.

    Attributes
    ----------
    energy_eV_atom, force_eV_A : float
        Largest differences: of the energy per atom, and of a force component.
    scale_eV_A : float
        Largest force component of the reference.
    """

    energy_eV_atom: float
    force_eV_A: float
    scale_eV_A: float

    def within(self, settings: EngineSettings) -> bool:
        """Tell whether the differences are within the tolerances; what is not a number is not."""
        allowed = settings.force_tolerance_eV_A + settings.force_tolerance_relative * self.scale_eV_A
        return self.energy_eV_atom <= settings.energy_tolerance_eV_atom and self.force_eV_A <= allowed

    def __str__(self) -> str:
        return (
            f"energy {self.energy_eV_atom:.1e} eV/atom, forces {self.force_eV_A:.1e} eV/A "
            f"(of {self.scale_eV_A:.1e}) from the reference"
        )


def compare(fast: Evaluator, reference: Evaluator, structure: Structure) -> Agreement:
    """Evaluate a structure, its atoms moved a little, with both evaluators."""
    probe = _rattled(structure)
    ours, theirs = _evaluate(fast, probe), _evaluate(reference, probe)
    difference = ours.forces.double().cpu() - theirs.forces.double().cpu()
    return Agreement(
        energy_eV_atom=abs(float(ours.energy[0] - theirs.energy[0])) / len(structure),
        force_eV_A=float(difference.abs().max()),
        scale_eV_A=float(theirs.forces.abs().max()),
    )


def element_sets(structures: Sequence[Structure]) -> dict[frozenset[int], Structure]:
    """Return the first structure of each set of elements."""
    found: dict[frozenset[int], Structure] = {}
    for structure in structures:
        found.setdefault(frozenset(int(z) for z in structure.numbers), structure)
    return found


def probe_crystal(elements: Sequence[int]) -> Structure:
    """Return a crystal of some elements for comparisons where no material is at hand: a line of atoms, 3 A apart."""
    count = len(elements)
    positions = np.column_stack([3.0 * np.arange(count), np.zeros(count), np.zeros(count)])
    return Structure(np.array(elements, dtype=np.int64), positions, np.diag([3.0 * count, 3.5, 4.0]))


def _rattled(structure: Structure) -> Structure:
    random = np.random.default_rng(len(structure))
    shifts = random.uniform(-RATTLE_A, RATTLE_A, structure.positions.shape)
    return Structure(structure.numbers, structure.positions + shifts, structure.cell)


def _evaluate(evaluator: Evaluator, structure: Structure) -> Evaluation:
    batch = StructureBatch.from_structures([structure], dtype=evaluator.dtype, device=evaluator.device)
    with torch.no_grad():
        return evaluator.evaluate(batch, NeighborList(evaluator.cutoff_A, 0.0))
