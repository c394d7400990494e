"""The contenders of benchmarks/engine.py --displacements: each computes the force constants of one material.

The material's ten-atom cell is repeated 2 x 2 x 2; forces are those of phonopy's displacements of 0.01 A.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.engine_contenders import Steps, as_processes, crystal_of, mace_calculator, model_file, native_calculator


def latdyn(path: Path, unit: Any, dtype: str, evaluator: str) -> Steps:
    """The stage displace, as a campaign runs it: displaced cells in batches, checks and force constants included."""
    import threadpoolctl

    from driver.archive.records import TaskKey, TaskResult
    from driver.engine.engine import Engine
    from driver.settings import DisplaceSettings, EngineSettings, SupercellSettings
    from driver.stages.displace import displace
    from driver.structures.convert import from_ase
    from driver.tasks import TaskInput

    threadpoolctl.threadpool_limits(1, user_api="blas")
    engine = Engine("cpu", 1, EngineSettings(displace_evaluator=evaluator))
    task = TaskInput(TaskKey("crystal", "benchmark", "displace"), from_ase(unit), None)
    model, cell, settings = model_file(path), SupercellSettings((2, 2, 2)), DisplaceSettings(dtype=dtype)

    def steps(n: int) -> None:
        for _ in range(n):
            (result,) = displace([task], model, engine, cell, settings)
            assert isinstance(result, TaskResult), result
            assert result.evaluator == evaluator

    return steps


def _with_phonopy(unit: Any, forces_of: Callable[[Sequence[Any]], Sequence[np.ndarray]]) -> Steps:
    """Phonopy around a function from ASE cells to their forces; the perfect cell included, as Latdyn does it."""
    from ase import Atoms
    from phonopy import Phonopy
    from phonopy.structure.atoms import PhonopyAtoms

    cell = PhonopyAtoms(unit.get_chemical_symbols(), positions=unit.positions, cell=unit.cell[:])

    def once() -> None:
        phonon = Phonopy(cell, 2 * np.eye(3, dtype=int), primitive_matrix="auto")
        phonon.generate_displacements(distance=0.01)
        cells = [phonon.supercell, *phonon.supercells_with_displacements]
        atoms = [Atoms(c.symbols, positions=c.positions, cell=c.cell, pbc=True) for c in cells]
        perfect, *displaced = forces_of(atoms)
        phonon.forces = [forces - perfect for forces in displaced]
        phonon.produce_force_constants()
        phonon.symmetrize_force_constants()

    def steps(n: int) -> None:
        for _ in range(n):
            once()

    return steps


def _with_calculator(unit: Any, calculator: Any) -> Steps:
    def forces_of(cells: Sequence[Any]) -> list[np.ndarray]:
        found = []
        for atoms in cells:
            atoms.calc = calculator
            found.append(atoms.get_forces())
        return found

    return _with_phonopy(unit, forces_of)


def ase_mace(path: Path, unit: Any, dtype: str) -> Steps:
    """Phonopy with mace-torch's ASE calculator, one cell after the other."""
    return _with_calculator(unit, mace_calculator(path, dtype))


def ase_symmetrix(path: Path, unit: Any, dtype: str) -> Steps:
    """Phonopy with symmetrix-xl's ASE calculator."""
    return _with_calculator(unit, native_calculator(path, dtype))


def torch_sim(path: Path, unit: Any, dtype: str) -> Steps:
    """Phonopy with torch-sim's MACE, all cells in one batch."""
    import torch
    import torch_sim as ts
    from torch_sim.models.mace import MaceModel

    kind, device = getattr(torch, dtype), torch.device("cpu")
    model = MaceModel(model=torch.load(path, weights_only=False), device=device, dtype=kind, compute_stress=False)

    def forces_of(cells: Sequence[Any]) -> Sequence[np.ndarray]:
        state = ts.io.atoms_to_state(list(cells), device, kind)
        forces = model(state)["forces"].detach().numpy()
        return np.split(forces, np.cumsum([len(atoms) for atoms in cells])[:-1])

    return _with_phonopy(unit, forces_of)


def janus(path: Path, unit: Any, dtype: str) -> Steps:
    """janus-core's phonons, without its files; it leaves the perfect cell out."""
    from janus_core.calculations.phonons import Phonons

    phonons = Phonons(
        struct=unit,
        arch="mace",
        device="cpu",
        model=str(path),
        calc_kwargs={"default_dtype": dtype},
        supercell=2,
        displacement=0.01,
        symmetrize=True,
        write_results=False,
        track_carbon=False,
        file_prefix=f"janus-{os.getpid()}",
    )

    def steps(n: int) -> None:
        for _ in range(n):
            phonons.calc_force_constants()

    return steps


CONTENDERS: dict[str, Callable[[Path, Any, str], Steps]] = {
    "latdyn-torch": partial(latdyn, evaluator="torch"),
    "latdyn-symmetrix": partial(latdyn, evaluator="symmetrix"),
    "ase-mace": ase_mace,
    "ase-symmetrix": ase_symmetrix,
    "torch-sim": torch_sim,
    "janus": janus,
}


if __name__ == "__main__":
    as_processes(CONTENDERS, lambda model, _: crystal_of(model, 10), sys.argv[1:])
