"""Stage relax: the crystal's own geometry in a model, by ASE's optimisers with the symmetry kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import spglib
from ase import Atoms
from ase.constraints import FixSymmetry
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS, FIRE, LBFGS

from driver.archive.records import Array, Scalar, Structure, TaskFailure, TaskKey, TaskResult
from driver.engine.calculator import BatchCalculator
from driver.engine.engine import Engine
from driver.errors import TaskError
from driver.models import ModelFile
from driver.settings import RelaxSettings
from driver.stages.checks import check_structure
from driver.stages.outcomes import attempted
from driver.structures.convert import from_ase, to_ase
from driver.tasks import TaskInput

OPTIMIZERS: dict[str, Callable[..., Any]] = {"FIRE": FIRE, "LBFGS": LBFGS, "BFGS": BFGS}

VOLUME_RATIOS = (0.5, 2.0)
"""A relaxation that leaves this range of final to initial volume has collapsed or flown apart."""


def relax(
    inputs: Sequence[TaskInput],
    model: ModelFile,
    engine: Engine,
    settings: RelaxSettings,
    *,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[TaskResult | TaskFailure]:
    """Relax structures one after the other.

    Converged means that no force on an atom and, where the cell is relaxed too, no row of the virial per atom
    exceeds `fmax_eV_A` (the generalised forces of `ase.filters.FrechetCellFilter`).

    Parameters
    ----------
    inputs : sequence of TaskInput
        Structures as given.
    model : ModelFile
    engine : Engine
    settings : RelaxSettings
    stop : callable
        Asked at every step; once it returns True, the stage ends and yields nothing for unfinished tasks.

    Yields
    ------
    TaskResult or TaskFailure
        One per input, in order; a failure is permanent where the structure is at fault: overlapping atoms, an element
        that the model lacks, no convergence within `max_steps`, a cell that collapses.
    """
    try:
        for task in inputs:
            yield attempted(task.key, partial(_relax_one, task, model, engine, settings, stop))
    except _StoppedError:
        return


class _StoppedError(BaseException):
    """Unwinds an optimiser that is to stop. No failure of the task, so no handler of exceptions may catch it."""


def _relax_one(
    task: TaskInput, model: ModelFile, engine: Engine, settings: RelaxSettings, stop: Callable[[], bool]
) -> TaskResult:
    check_structure(task.structure)
    atoms = to_ase(task.structure)
    group_initial = space_group(atoms, settings.symprec_A)
    evaluator = engine.evaluator(model, task.structure.numbers, settings.dtype)
    atoms.calc = BatchCalculator(evaluator)
    steps = 0 if settings.mode == "none" else _minimize(atoms, settings, stop)
    return _result(task.key, task.structure, atoms, settings, steps, group_initial, evaluator.name)


def _minimize(atoms: Atoms, settings: RelaxSettings, stop: Callable[[], bool]) -> int:
    """Relax `atoms` in place; return the number of steps taken."""
    with_cell = settings.mode == "cell_and_positions"
    if settings.keep_symmetry:
        # This first makes the structure symmetric to the last digit: one from a file with four decimals is so only
        # within a tolerance, and the displacements, which look more closely, would find its symmetry broken.
        atoms.set_constraint(FixSymmetry(atoms, symprec=settings.symprec_A, adjust_cell=with_cell))
    volume = atoms.get_volume()

    def watch() -> None:
        if stop():
            raise _StoppedError
        ratio = atoms.get_volume() / volume
        if not VOLUME_RATIOS[0] <= ratio <= VOLUME_RATIOS[1]:
            raise TaskError(
                f"the cell's volume has become {ratio:.2f} times the given one: the model has no such crystal"
            )
        if not np.isfinite(atoms.get_forces(apply_constraint=False)).all():
            raise TaskError(f"forces are not finite after {optimizer.nsteps} steps of the relaxation")

    target = FrechetCellFilter(atoms) if with_cell else atoms
    optimizer = OPTIMIZERS[settings.optimizer](target, logfile=None)
    optimizer.attach(watch)
    if not optimizer.run(fmax=settings.fmax_eV_A, steps=settings.max_steps):
        residual = np.linalg.norm(target.get_forces(), axis=1).max()
        what = "force or virial per atom" if with_cell else "force"
        raise TaskError(
            f"not relaxed after {settings.max_steps} steps: the largest {what} is {residual:.2e} eV/A, wanted "
            f"{settings.fmax_eV_A:.0e} (set another name= and a larger relax.max_steps or relax.fmax_eV_A)"
        )
    return int(optimizer.nsteps)


def _result(
    key: TaskKey,
    initial: Structure,
    atoms: Atoms,
    settings: RelaxSettings,
    steps: int,
    group_initial: int,
    evaluator: str,
) -> TaskResult:
    forces = atoms.get_forces(apply_constraint=False)
    stress = atoms.get_stress(voigt=False, apply_constraint=False)
    if not (np.isfinite(forces).all() and np.isfinite(stress).all()):
        raise TaskError("forces or stress of the structure are not finite")
    final = from_ase(atoms)
    energy = float(atoms.get_potential_energy())
    lengths_angles = [float(x) for x in atoms.cell.cellpar()]
    max_force = float(np.linalg.norm(forces, axis=1).max())
    names = ("a_A", "b_A", "c_A", "alpha_deg", "beta_deg", "gamma_deg")
    scalars: dict[str, Scalar] = {
        "energy_eV": energy,
        "energy_per_atom_eV": energy / len(atoms),
        "volume_A3": final.volume,
        **dict(zip(names, lengths_angles, strict=True)),
        "max_force_eV_A": max_force,
        "max_stress_eV_A3": float(np.abs(stress).max()),
        "steps": steps,
        # Without an optimiser: whether the given geometry happens to meet the criterion.
        "converged": settings.mode != "none" or max_force <= settings.fmax_eV_A,
        "space_group_initial": group_initial,
        "space_group_final": space_group(atoms, settings.symprec_A),
    }
    arrays = {
        "numbers": Array(final.numbers),
        "positions": Array(final.positions, "angstrom"),
        "cell": Array(final.cell, "angstrom"),
        "initial/positions": Array(initial.positions, "angstrom"),
        "initial/cell": Array(initial.cell, "angstrom"),
        "forces": Array(forces, "eV angstrom-1"),
        "stress": Array(stress, "eV angstrom-3"),
    }
    return TaskResult(key, scalars, arrays, evaluator=evaluator, dtype=settings.dtype)


def space_group(atoms: Atoms, symprec_A: float) -> int:
    """Return the number of the space group within a tolerance in angstrom; 0 where spglib finds none."""
    dataset = spglib.get_symmetry_dataset(
        (atoms.cell.array, atoms.get_scaled_positions(), atoms.numbers), symprec=symprec_A
    )
    return 0 if dataset is None else int(dataset.number)
