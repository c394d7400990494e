"""ASE's view of an evaluator, for its optimisers, filters, constraints and molecular dynamics."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from driver.engine.batch import StructureBatch
from driver.engine.interface import Evaluator
from driver.engine.neighbors import NeighborList
from driver.structures.convert import from_ase


class BatchCalculator(Calculator):
    """An ASE calculator that evaluates one structure with a batched evaluator.

    Gives energy and free_energy in eV, forces in eV/angstrom and stress in eV/angstrom^3 (Voigt order, ASE's sign), all
    in one evaluation: ASE's cell filters ask for forces and stress one after the other. Results are cached until the
    atoms change, the neighbour list until they have moved half of its skin.

    Parameters
    ----------
    evaluator : Evaluator
        May be shared with other users.
    skin_A : float
        Skin of the neighbour list.
    """

    implemented_properties = ["energy", "free_energy", "forces", "stress"]  # noqa: RUF012 (ASE's contract)

    def __init__(self, evaluator: Evaluator, *, skin_A: float = 0.5) -> None:
        super().__init__()
        self.evaluator = evaluator
        self.neighbors = NeighborList(evaluator.cutoff_A, skin_A)

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Evaluate `atoms` and keep all properties in `results`; called by ASE.

        Raises
        ------
        ValueError
            The atoms are not periodic in all three directions, or of an element that the evaluator lacks.
        """
        super().calculate(atoms, properties, system_changes)
        present: Any = self.atoms
        if not present.pbc.all():
            raise ValueError("only structures that are periodic in all three directions can be evaluated")
        batch = StructureBatch.from_structures(
            [from_ase(present)], dtype=self.evaluator.dtype, device=self.evaluator.device
        )
        evaluation = self.evaluator.evaluate(batch, self.neighbors, stress=True)
        assert evaluation.stress is not None
        energy = float(evaluation.energy[0])
        self.results = {
            "energy": energy,
            "free_energy": energy,
            "forces": evaluation.forces.double().cpu().numpy(),
            "stress": full_3x3_to_voigt_6_stress(evaluation.stress[0].double().cpu().numpy()),
        }
