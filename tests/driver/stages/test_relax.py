from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, make_supercell
from ase.constraints import FixSymmetry
from ase.filters import FrechetCellFilter
from ase.optimize import FIRE
from only_rank import busy_ranks
from toy_potentials import LennardJones, ToyEngine

from driver.archive.records import TaskFailure, TaskKey, TaskResult
from driver.engine.calculator import BatchCalculator
from driver.models import ModelFile
from driver.settings import RelaxSettings
from driver.stages.relax import relax
from driver.structures.convert import from_ase
from driver.tasks import TaskInput

MODEL = ModelFile("toy", None, "0" * 64)
KEY = TaskKey("Ar", "toy", "relax")


def argon(a=5.0):
    return bulk("Ar", "fcc", a=a)


def relaxed(atoms, **settings):
    (outcome,) = relax(
        [TaskInput(KEY, from_ase(atoms))],
        MODEL,
        ToyEngine(lambda dtype: LennardJones(dtype=dtype)),
        RelaxSettings(**settings),
    )
    return outcome


@pytest.mark.parametrize("optimizer", ["FIRE", "LBFGS", "BFGS"])
def test_a_crystal_relaxes_to_where_ase_alone_takes_it(optimizer):
    result = relaxed(argon(), optimizer=optimizer, fmax_eV_A=1e-6)
    assert isinstance(result, TaskResult), result.message
    atoms = argon()
    atoms.calc = BatchCalculator(LennardJones())
    atoms.set_constraint(FixSymmetry(atoms))
    assert FIRE(FrechetCellFilter(atoms), logfile=None).run(fmax=1e-6, steps=1000)
    np.testing.assert_allclose(result.arrays["cell"].value, atoms.cell.array, atol=1e-4)
    assert result.scalars["a_A"] == pytest.approx(atoms.cell.cellpar()[0], abs=1e-4)
    assert result.scalars["energy_eV"] == pytest.approx(atoms.get_potential_energy(), abs=1e-6)
    assert result.scalars["space_group_initial"] == result.scalars["space_group_final"] == 225
    assert result.scalars["converged"] is True
    assert result.scalars["max_force_eV_A"] < 1e-6
    assert result.scalars["max_stress_eV_A3"] < 1e-6
    np.testing.assert_array_equal(result.arrays["initial/cell"].value, argon().cell.array)


@pytest.mark.parametrize("optimizer", ["FIRE", "LBFGS", "BFGS"])
def test_a_rank_relaxes_while_the_others_do_something_else(optimizer):
    with busy_ranks():
        result = relaxed(argon(), optimizer=optimizer, fmax_eV_A=1e-3)
    assert isinstance(result, TaskResult), result.message


def test_symmetry_is_kept_although_breaking_it_would_lower_the_energy():
    """A simple cubic crystal has no reason to stay so but symmetry."""
    atoms = Atoms("Ar2", cell=np.diag([3.8, 3.8, 7.6]), scaled_positions=[[0, 0, 0], [0, 0, 0.5]], pbc=True)
    kept = relaxed(atoms)
    assert kept.scalars["space_group_final"] == kept.scalars["space_group_initial"] == 221
    lost = relaxed(_rattled(atoms), keep_symmetry=False, max_steps=2000)
    assert isinstance(lost, TaskResult), lost.message
    assert lost.scalars["energy_eV"] < kept.scalars["energy_eV"] - 1e-3
    assert lost.scalars["space_group_final"] != 221


def _rattled(atoms):
    atoms = atoms.copy()
    atoms.rattle(0.03, seed=1)
    atoms.set_cell(atoms.cell.array + np.random.default_rng(2).normal(0, 0.03, (3, 3)), scale_atoms=True)
    return atoms


def test_noise_below_the_tolerance_is_removed_before_symmetry_is_kept():
    atoms = make_supercell(argon(), -np.eye(3) + 1)
    atoms.positions += np.random.default_rng(3).normal(0, 1e-4, atoms.positions.shape)
    result = relaxed(atoms)
    scaled = result.arrays["positions"].value @ np.linalg.inv(result.arrays["cell"].value)
    ideal = make_supercell(argon(), -np.eye(3) + 1).get_scaled_positions()
    difference = scaled - ideal
    difference -= np.round(difference)
    difference -= difference[0]
    assert np.abs(difference).max() < 1e-9


def test_positions_only_leaves_the_cell():
    atoms = _rattled(make_supercell(argon(5.3), -np.eye(3) + 1))
    result = relaxed(atoms, mode="positions", keep_symmetry=False)
    assert isinstance(result, TaskResult), result.message
    np.testing.assert_array_equal(result.arrays["cell"].value, atoms.cell.array)
    assert result.scalars["max_force_eV_A"] < 1e-4
    assert result.scalars["steps"] > 0
    assert result.scalars["max_stress_eV_A3"] > 1e-4


def test_mode_none_stores_the_structure_as_given_with_its_forces():
    atoms = _rattled(make_supercell(argon(), -np.eye(3) + 1))
    result = relaxed(atoms, mode="none")
    np.testing.assert_array_equal(result.arrays["positions"].value, atoms.positions)
    np.testing.assert_array_equal(result.arrays["cell"].value, atoms.cell.array)
    assert result.scalars["steps"] == 0
    assert result.scalars["converged"] is False
    atoms.calc = BatchCalculator(LennardJones())
    np.testing.assert_allclose(result.arrays["forces"].value, atoms.get_forces(), atol=1e-12)
    assert result.scalars["max_force_eV_A"] == pytest.approx(np.linalg.norm(atoms.get_forces(), axis=1).max())


def test_overlapping_atoms_are_named_with_their_distance():
    atoms = Atoms("ArNe", cell=np.eye(3) * 6, positions=[[0.1, 0, 0], [5.9, 0, 0]], pbc=True)
    outcome = relaxed(atoms)
    assert isinstance(outcome, TaskFailure)
    assert outcome.permanent
    assert "atoms 0 (Ar) and 1 (Ne) are 0.200 A apart" in outcome.message


def test_an_atom_on_its_own_image_is_named():
    outcome = relaxed(Atoms("Ar", cell=np.diag([6, 6, 0.4]), pbc=True))
    assert "atom 0 (Ar) and its periodic image are 0.400 A apart" in outcome.message


def test_not_converged_names_the_residual_force():
    outcome = relaxed(argon(), max_steps=2)
    assert isinstance(outcome, TaskFailure)
    assert outcome.permanent
    assert outcome.exception == "TaskError"
    found = re.search(r"not relaxed after 2 steps: the largest force or virial per atom is (\S+) eV/A", outcome.message)
    assert float(found.group(1)) > 1e-4


def test_a_cell_that_flies_apart_is_a_failure():
    class Repulsive(LennardJones):
        def _pair(self, r):
            return 4.0 * (self._sigma / r) ** 6

    (outcome,) = relax(
        [TaskInput(KEY, from_ase(argon(3.5)))],
        MODEL,
        ToyEngine(lambda dtype: Repulsive(dtype=dtype)),
        RelaxSettings(),
    )
    assert isinstance(outcome, TaskFailure)
    assert outcome.permanent
    assert "volume has become 2." in outcome.message


def test_one_bad_structure_does_not_stop_the_others():
    engine = ToyEngine(lambda dtype: LennardJones(dtype=dtype), lacking=[10])
    inputs = [
        TaskInput(TaskKey("Ne", "toy", "relax"), from_ase(bulk("Ne", "fcc", a=5.0))),
        TaskInput(KEY, from_ase(argon())),
    ]
    bad, good = relax(inputs, MODEL, engine, RelaxSettings())
    assert isinstance(bad, TaskFailure)
    assert "toy does not know Ne" in bad.message
    assert isinstance(good, TaskResult)


def test_running_out_of_memory_is_not_a_tasks_fault():
    class Full(LennardJones):
        def evaluate(self, batch, neighbors, *, stress=False):
            raise torch.OutOfMemoryError("full")

    with pytest.raises(torch.OutOfMemoryError):
        list(relax([TaskInput(KEY, from_ase(argon()))], MODEL, ToyEngine(Full), RelaxSettings()))


def test_a_mistake_in_the_program_is_a_failure_that_may_be_tried_again():
    class Broken(LennardJones):
        def evaluate(self, batch, neighbors, *, stress=False):
            raise KeyError("what")

    (outcome,) = relax([TaskInput(KEY, from_ase(argon()))], MODEL, ToyEngine(Broken), RelaxSettings())
    assert not outcome.permanent
    assert outcome.exception == "KeyError"
    assert "in evaluate" in outcome.traceback


def test_a_relaxation_ends_at_the_next_step_once_it_is_to_stop():
    asked = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) > 3

    tasks = [TaskInput(TaskKey(name, "toy", "relax"), from_ase(argon())) for name in ("A", "B")]
    toy = ToyEngine(lambda dtype: LennardJones(dtype=dtype))
    assert list(relax(tasks, MODEL, toy, RelaxSettings(fmax_eV_A=1e-9), stop=stop)) == []
    assert len(asked) == 4
