"""The ASE calculator under ASE's own machinery."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from ase import units
from ase.build import bulk
from ase.constraints import FixSymmetry
from ase.filters import FrechetCellFilter
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS
from mace.calculators import MACECalculator

from driver.engine.calculator import BatchCalculator
from driver.engine.engine import Engine
from driver.engine.interface import Evaluator
from driver.models import ModelFile

Zoo = Callable[..., ModelFile]


@pytest.fixture(scope="module")
def evaluator(zoo: Zoo) -> Evaluator:
    return Engine().evaluator(zoo("mpa-0"), (11, 17), "float64")


@pytest.fixture
def reference(zoo: Zoo) -> MACECalculator:
    return MACECalculator(model_paths=str(zoo("mpa-0").path), default_dtype="float64", device="cpu")


class CountingEvaluator:
    """Counts evaluations of the evaluator that it stands for."""

    def __init__(self, evaluator: Evaluator) -> None:
        self._evaluator = evaluator
        self.evaluations = 0

    def __getattr__(self, name: str):
        return getattr(self._evaluator, name)

    def evaluate(self, *args, **kwargs):
        self.evaluations += 1
        return self._evaluator.evaluate(*args, **kwargs)


def rocksalt(rattle_A: float = 0.0):
    atoms = bulk("NaCl", "rocksalt", a=5.6)
    atoms.rattle(rattle_A, seed=1)
    return atoms


def test_gives_what_mace_torch_gives(evaluator: Evaluator, reference: MACECalculator) -> None:
    ours, theirs = rocksalt(0.1), rocksalt(0.1)
    ours.calc, theirs.calc = BatchCalculator(evaluator), reference
    assert ours.get_potential_energy() == pytest.approx(theirs.get_potential_energy(), abs=1e-10)
    assert ours.get_potential_energy(force_consistent=True) == ours.get_potential_energy()
    np.testing.assert_allclose(ours.get_forces(), theirs.get_forces(), rtol=0, atol=1e-10)
    np.testing.assert_allclose(ours.get_stress(), theirs.get_stress(), rtol=0, atol=1e-10)


def test_evaluates_once_per_geometry(evaluator: Evaluator) -> None:
    counting = CountingEvaluator(evaluator)
    atoms = rocksalt(0.1)
    atoms.calc = BatchCalculator(counting)  # type: ignore[arg-type]
    for _ in range(2):
        atoms.get_potential_energy()
        atoms.get_forces()
        atoms.get_stress()
    assert counting.evaluations == 1
    atoms.positions[0, 0] += 0.01
    atoms.get_forces()
    assert counting.evaluations == 2
    atoms.set_cell(atoms.cell * 1.01, scale_atoms=True)
    atoms.get_stress()
    assert counting.evaluations == 3
    assert atoms.calc.neighbors.searches == 2  # the small move was within the skin, the new cell was not


def test_relaxes_cell_and_positions_like_mace_torch(evaluator: Evaluator, reference: MACECalculator) -> None:
    results = []
    for calculator in (BatchCalculator(evaluator), reference):
        atoms = bulk("NaCl", "rocksalt", a=5.7)
        atoms.calc = calculator
        atoms.set_constraint(FixSymmetry(atoms))
        optimizer = BFGS(FrechetCellFilter(atoms), logfile=None)
        optimizer.run(fmax=1e-3, steps=15)
        results.append((optimizer.nsteps, atoms.cell.array.copy(), atoms.get_potential_energy()))
    assert results[0][0] == results[1][0] > 1
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=0, atol=1e-7)
    assert results[0][2] == pytest.approx(results[1][2], abs=1e-8)


def test_runs_dynamics_like_mace_torch(evaluator: Evaluator, reference: MACECalculator) -> None:
    positions = []
    for calculator in (BatchCalculator(evaluator), reference):
        atoms = rocksalt(0.1)
        atoms.calc = calculator
        VelocityVerlet(atoms, timestep=1.0 * units.fs).run(20)
        positions.append(atoms.positions.copy())
    assert np.abs(positions[0] - rocksalt(0.1).positions).max() > 1e-3
    np.testing.assert_allclose(positions[0], positions[1], rtol=0, atol=1e-9)


def test_serves_several_structures_in_turn(evaluator: Evaluator, reference: MACECalculator) -> None:
    calculator = BatchCalculator(evaluator)
    for atoms in (rocksalt(0.1), rocksalt(0.1).repeat((2, 1, 1)), rocksalt(0.05)):
        atoms.calc = calculator
        ours = atoms.get_forces()
        atoms.calc = reference
        np.testing.assert_allclose(ours, atoms.get_forces(), rtol=0, atol=1e-10)


def test_refuses_structures_that_are_not_periodic(evaluator: Evaluator) -> None:
    atoms = rocksalt()
    atoms.pbc = (True, True, False)
    atoms.calc = BatchCalculator(evaluator)
    with pytest.raises(ValueError, match="periodic in all three directions"):
        atoms.get_forces()
