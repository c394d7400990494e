"""Is the fast evaluator good enough? Compared with the reference before it is trusted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from driver.archive.records import Structure
from driver.engine.batch import StructureBatch
from driver.engine.interface import Evaluation, Evaluator
from driver.engine.neighbors import NeighborList
from driver.settings import EngineSettings
from driver.structures.supercells import make_supercell

RATTLE_A = 0.1
"""How far the atoms of a probe are moved, so that there are forces to compare: about the amplitude of dynamics."""
FEW_ATOMS = 4
"""Crystals with fewer atoms are repeated for a comparison."""
PROBE_DIRECTION = np.array([3.0, 2.0, 1.0]) / np.sqrt(14.0)
"""Along which atoms are displaced to compare force constants: no symmetry direction of common crystals."""
DISPLACEMENT_A = 0.01


@dataclass(frozen=True)
class Choice:
    """An evaluator, and why it is this one."""

    evaluator: Evaluator
    reason: str

    def attributes(self) -> dict[str, dict[str, Any]]:
        """Return what is stored of it with a result."""
        return {"evaluator": {"name": self.evaluator.name, "reason": self.reason}}


class Agreement(Protocol):
    """How two evaluators compare on a structure."""

    def excess(self, settings: EngineSettings) -> float:
        """Return the largest difference over what is allowed: above 1 is too much; infinite for what is no number."""
        ...


@dataclass(frozen=True)
class ForceAgreement:
    """How energies and forces of two evaluators compare.

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

    def excess(self, settings: EngineSettings) -> float:
        """Return the largest difference over what is allowed."""
        allowed = settings.force_tolerance_eV_A + settings.force_tolerance_relative * self.scale_eV_A
        return _worst(self.energy_eV_atom / settings.energy_tolerance_eV_atom, self.force_eV_A / allowed)

    def __str__(self) -> str:
        return (
            f"energy {self.energy_eV_atom:.1e} eV/atom, forces {self.force_eV_A:.1e} eV/A "
            f"(of {self.scale_eV_A:.1e}) from the reference"
        )


@dataclass(frozen=True)
class StiffnessAgreement:
    """How force constants of two evaluators compare.

    Attributes
    ----------
    difference_eV_A2, scale_eV_A2 : float
        Largest difference, and largest force constant of the reference.
    """

    difference_eV_A2: float
    scale_eV_A2: float

    def excess(self, settings: EngineSettings) -> float:
        """Return the difference over what is allowed."""
        allowed = settings.stiffness_tolerance_eV_A2 + settings.stiffness_tolerance_relative * self.scale_eV_A2
        return _worst(self.difference_eV_A2 / allowed)

    def __str__(self) -> str:
        return f"force constants {self.difference_eV_A2:.1e} eV/A^2 (of {self.scale_eV_A2:.1e}) from the reference"


def compare_forces(fast: Evaluator, reference: Evaluator, structure: Structure) -> ForceAgreement:
    """Evaluate a structure, its atoms moved a little, with both evaluators."""
    probe = [_rattled(_repeated(structure))]
    ours, theirs = _evaluate(fast, probe), _evaluate(reference, probe)
    difference = ours.forces.double().cpu() - theirs.forces.double().cpu()
    return ForceAgreement(
        energy_eV_atom=abs(float(ours.energy[0] - theirs.energy[0])) / len(probe[0]),
        force_eV_A=float(difference.abs().max()),
        scale_eV_A=float(theirs.forces.abs().max()),
    )


def compare_stiffness(fast: Evaluator, reference: Evaluator, structure: Structure) -> StiffnessAgreement:
    """Compare the forces that one displaced atom of each element causes, by central differences."""
    probes = _displaced(_repeated(structure))
    ours, theirs = (_force_constants(evaluator, probes) for evaluator in (fast, reference))
    return StiffnessAgreement(float((ours - theirs).abs().max()), float(theirs.abs().max()))


COMPARISONS: dict[str, tuple[Callable[[Evaluator, Evaluator, Structure], Agreement], ...]] = {
    "dynamics": (compare_forces,),
    "displace": (compare_forces, compare_stiffness),
}
"""Stage -> what must agree."""


def together(choices: Sequence[Choice]) -> list[list[int]]:
    """Return the indices of those that share an evaluator, evaluator by evaluator."""
    groups: dict[int, list[int]] = {}
    for index, choice in enumerate(choices):
        groups.setdefault(id(choice.evaluator), []).append(index)
    return list(groups.values())


def probe_crystal(elements: Sequence[int]) -> Structure:
    """Return a crystal of some elements for comparisons where no material is at hand: a line of atoms, 3 A apart."""
    count = len(elements)
    positions = np.column_stack([3.0 * np.arange(count), np.zeros(count), np.zeros(count)])
    return Structure(np.array(elements, dtype=np.int64), positions, np.diag([3.0 * count, 3.5, 4.0]))


def _worst(*ratios: float) -> float:
    return max(ratio if np.isfinite(ratio) else np.inf for ratio in ratios)


def _repeated(structure: Structure) -> Structure:
    """Return a small crystal twice in each direction: its few atoms would move together with all their images."""
    return make_supercell(structure, 2 * np.eye(3, dtype=np.int64)) if len(structure) < FEW_ATOMS else structure


def _rattled(structure: Structure) -> Structure:
    random = np.random.default_rng(len(structure))
    shifts = random.uniform(-RATTLE_A, RATTLE_A, structure.positions.shape)
    return Structure(structure.numbers, structure.positions + shifts, structure.cell)


def _displaced(structure: Structure) -> list[Structure]:
    """Return pairs of structures, the first atom of an element displaced forth in one and back in the other."""
    probes = []
    for atom in np.unique(structure.numbers, return_index=True)[1]:
        for step in (DISPLACEMENT_A, -DISPLACEMENT_A):
            positions = structure.positions.copy()
            positions[atom] += step * PROBE_DIRECTION
            probes.append(Structure(structure.numbers, positions, structure.cell))
    return probes


def _force_constants(evaluator: Evaluator, probes: Sequence[Structure]) -> torch.Tensor:
    """Return force constants (P/2, n, 3) along the direction of displacement in eV/angstrom^2."""
    forces = _evaluate(evaluator, probes).forces.double().cpu().reshape(len(probes) // 2, 2, -1, 3)
    return (forces[:, 1] - forces[:, 0]) / (2.0 * DISPLACEMENT_A)


def _evaluate(evaluator: Evaluator, structures: Sequence[Structure]) -> Evaluation:
    batch = StructureBatch.from_structures(structures, dtype=evaluator.dtype, device=evaluator.device)
    with torch.no_grad():
        return evaluator.evaluate(batch, NeighborList(evaluator.cutoff_A, 0.0))
