"""Batched evaluation against mace-torch's own ASE calculator and against itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from mace.calculators import MACECalculator
from model_zoo import ARCHITECTURES, FEW_ELEMENTS
from random_structures import random_structure

from driver.archive.records import Structure
from driver.download import hash_file
from driver.engine.batch import StructureBatch
from driver.engine.engine import Engine
from driver.engine.interface import Evaluation, Evaluator
from driver.engine.neighbors import NeighborList
from driver.models import ModelFile
from driver.structures.convert import to_ase

Zoo = Callable[..., ModelFile]

EXACT = 1e-10
"""eV, eV/angstrom, eV/angstrom^3."""
CASES = [
    *((architecture, "8x0e", "") for architecture in ARCHITECTURES),
    ("mp-0", "4x0e+4x1o", ""),
    ("mpa-0", "4x0e+4x1o+4x2e", ""),
    ("multi-head", "8x0e", "pbe"),
    ("mh-1", "8x0e", "omat"),
]


def evaluate(
    evaluator: Evaluator, structures: Sequence[Structure], neighbors: NeighborList | None = None, *, stress: bool = True
) -> Evaluation:
    batch = StructureBatch.from_structures(structures, dtype=evaluator.dtype)
    return evaluator.evaluate(batch, neighbors or NeighborList(evaluator.cutoff_A), stress=stress)


def stacked(references: Sequence[Atoms]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Energies, forces and stresses of ASE's atoms, laid out as those of a batch."""
    return (
        np.array([atoms.get_potential_energy() for atoms in references]),
        np.concatenate([atoms.get_forces() for atoms in references]),
        np.stack([atoms.get_stress(voigt=False) for atoms in references]),
    )


def assert_equal(evaluation: Evaluation, references: Sequence[Atoms], atol: float = EXACT) -> None:
    energies, forces, stresses = stacked(references)
    assert evaluation.stress is not None
    assert evaluation.energy.dtype == torch.float64
    np.testing.assert_allclose(evaluation.energy.numpy(), energies, rtol=0, atol=atol)
    np.testing.assert_allclose(evaluation.forces.numpy(), forces, rtol=0, atol=atol)
    np.testing.assert_allclose(evaluation.stress.numpy(), stresses, rtol=0, atol=atol)


def with_calculator(structures: Sequence[Structure], model: ModelFile, dtype: str = "float64") -> list[Atoms]:
    arguments = {"head": model.head} if model.head else {}
    calculator = MACECalculator(model_paths=str(model.path), default_dtype=dtype, device="cpu", **arguments)
    references = [to_ase(structure) for structure in structures]
    for atoms in references:
        atoms.calc = calculator
        atoms.get_potential_energy()
        results = {name: calculator.results[name] for name in ("energy", "forces", "stress")}
        atoms.calc = SinglePointCalculator(atoms, **results)
    return references


@pytest.mark.parametrize(("architecture", "hidden", "head"), CASES, ids=["/".join(filter(None, c)) for c in CASES])
def test_agrees_with_mace_torch(
    zoo: Zoo, structures: list[Structure], architecture: str, hidden: str, head: str
) -> None:
    model = zoo(architecture, hidden, head)
    references = with_calculator(structures, model)
    engine = Engine()
    whole = engine.evaluator(model, FEW_ELEMENTS, "float64")
    assert whole.atomic_numbers == FEW_ELEMENTS
    assert_equal(evaluate(whole, structures), references)  # batched, all elements
    assert_equal(evaluate(whole, structures[1:2]), references[1:2])  # single
    numbers = np.concatenate([s.numbers for s in structures[1:]])
    some = engine.evaluator(model, numbers, "float64")
    assert len(some.atomic_numbers) < len(FEW_ELEMENTS)
    assert_equal(evaluate(some, structures[1:]), references[1:])  # batched, selected elements
    assert np.abs(stacked(references)[1]).max() > 0.01  # there was something to compare


@pytest.mark.parametrize("architecture", ["mp-0b", "mpa-0"])
def test_agrees_in_float64_on_a_file_in_float32(zoo: Zoo, structures: list[Structure], architecture: str) -> None:
    """Foundation models are stored in float32: cutting and rearranging must not round their weights again."""
    model = zoo(architecture, dtype=torch.float32)
    for chosen in (structures[1:2], structures[2:3]):  # three elements, one element
        own = Engine().evaluator(model, chosen[0].numbers, "float64")
        assert_equal(evaluate(own, chosen), with_calculator(chosen, model))


@pytest.fixture(scope="module")
def evaluator(zoo: Zoo) -> Evaluator:
    """The most involved architecture: density-normalised, Agnesi transform, pair repulsion."""
    return Engine().evaluator(zoo("mpa-0"), FEW_ELEMENTS, "float64")


def test_agrees_in_float32(zoo: Zoo, structures: list[Structure]) -> None:
    model = zoo("mpa-0")
    references = with_calculator(structures, model)
    evaluation = evaluate(Engine().evaluator(model, FEW_ELEMENTS, "float32"), structures)
    assert evaluation.forces.dtype == torch.float32
    assert_equal(evaluation, references, atol=2e-4)
    error = np.abs(evaluation.forces.numpy() - stacked(references)[1]).max()
    assert error > 1e-9  # it really was single precision


def test_forces_and_stress_are_derivatives_of_the_energy(evaluator: Evaluator, structures: list[Structure]) -> None:
    structure, step = structures[1], 1e-4
    evaluation = evaluate(evaluator, [structure])

    def difference(change: Callable[[float], Structure]) -> float:
        energy = evaluate(evaluator, [change(step), change(-step)], stress=False).energy
        return float(energy[0] - energy[1]) / (2 * step)

    for atom, axis in ((0, 0), (3, 1), (4, 2)):

        def displaced(by: float, atom: int = atom, axis: int = axis) -> Structure:
            positions = structure.positions.copy()
            positions[atom, axis] += by
            return Structure(structure.numbers, positions, structure.cell)

        assert float(evaluation.forces[atom, axis]) == pytest.approx(-difference(displaced), abs=1e-6)
    for i, j in ((0, 0), (0, 1), (2, 1)):

        def strained(by: float, i: int = i, j: int = j) -> Structure:
            deformation = np.eye(3)
            deformation[i, j] += by / 2
            deformation[j, i] += by / 2
            return Structure(structure.numbers, structure.positions @ deformation, structure.cell @ deformation)

        assert evaluation.stress is not None
        expected = difference(strained) / structure.volume
        assert float(evaluation.stress[0, i, j]) == pytest.approx(expected, abs=1e-7)


def test_the_skin_does_not_change_numbers(zoo: Zoo, structures: list[Structure]) -> None:
    """Along a walk the list is reused and rebuilt; each step must give what a fresh list gives."""
    evaluator = Engine().evaluator(zoo("mp-0b"), FEW_ELEMENTS, "float64")
    batch = StructureBatch.from_structures(structures[:2], dtype=torch.float64)
    neighbors = NeighborList(evaluator.cutoff_A, 0.3)
    generator = torch.Generator().manual_seed(1)
    for _ in range(12):
        batch = batch.moved(batch.positions + 0.03 * torch.randn(batch.positions.shape, generator=generator).double())
        kept = evaluator.evaluate(batch, neighbors, stress=True)
        fresh = evaluator.evaluate(batch, NeighborList(evaluator.cutoff_A, 0.0), stress=True)
        for name in ("energy", "forces", "stress"):
            torch.testing.assert_close(getattr(kept, name), getattr(fresh, name), rtol=0, atol=EXACT)
    assert 2 < neighbors.searches < 24  # reused, and rebuilt


def test_the_order_in_a_batch_does_not_matter(evaluator: Evaluator, structures: list[Structure]) -> None:
    forward = evaluate(evaluator, structures)
    backward = evaluate(evaluator, structures[::-1])
    np.testing.assert_allclose(forward.energy.numpy(), backward.energy.numpy()[::-1], rtol=0, atol=EXACT)
    counts = [len(s) for s in structures]
    parts = [part.numpy() for part in backward.forces.split(counts[::-1])][::-1]
    np.testing.assert_allclose(forward.forces.numpy(), np.concatenate(parts), rtol=0, atol=EXACT)


@pytest.mark.parametrize("broken", ["nan", "inf", "collapsed pair", "collapsed cell"])
def test_a_broken_structure_spoils_only_itself(evaluator: Evaluator, structures: list[Structure], broken: str) -> None:
    healthy = evaluate(evaluator, structures)
    victim = structures[1]
    positions, cell = victim.positions.copy(), victim.cell
    if broken == "collapsed pair":
        positions[2] = positions[0]
    elif broken == "collapsed cell":
        cell = np.zeros((3, 3))
    else:
        positions[2, 0] = float(broken)
    mixed = evaluate(evaluator, [structures[0], Structure(victim.numbers, positions, cell), *structures[2:]])
    assert mixed.stress is not None
    assert healthy.stress is not None
    own = slice(12, 17)
    assert not torch.isfinite(mixed.energy[1])
    assert torch.isnan(mixed.forces[own]).any()
    assert torch.isnan(mixed.stress[1]).any()
    others = [0, 2, 3]
    atoms = np.delete(np.arange(len(healthy.forces)), own)
    for now, then in (
        (mixed.energy[others], healthy.energy[others]),
        (mixed.forces[atoms], healthy.forces[atoms]),
        (mixed.stress[others], healthy.stress[others]),
    ):
        torch.testing.assert_close(now, then, rtol=0, atol=1e-12)


def test_structures_without_neighbours_have_the_energy_of_their_atoms(evaluator: Evaluator) -> None:
    far = Structure(np.array([9, 17]), np.array([[0.0, 0, 0], [0, 0, 10.0]]), 20.0 * np.eye(3))
    evaluation = evaluate(evaluator, [far])
    alone = [evaluate(evaluator, [Structure(far.numbers[i : i + 1], np.zeros((1, 3)), far.cell)]) for i in (0, 1)]
    assert float(evaluation.energy[0]) == pytest.approx(sum(float(e.energy[0]) for e in alone), abs=EXACT)
    assert not evaluation.forces.any()
    assert evaluation.stress is not None
    assert not evaluation.stress.any()


def test_leaves_the_batch_as_it_is(evaluator: Evaluator, structures: list[Structure]) -> None:
    batch = StructureBatch.from_structures(structures, dtype=torch.float64)
    positions, cells = batch.positions.clone(), batch.cells.clone()
    with torch.no_grad():
        evaluation = evaluator.evaluate(batch, NeighborList(evaluator.cutoff_A))
    assert evaluation.stress is None
    assert torch.equal(batch.positions, positions)
    assert torch.equal(batch.cells, cells)
    assert not any(t.requires_grad for t in (batch.positions, batch.cells, evaluation.energy, evaluation.forces))


def test_refuses_what_does_not_fit(evaluator: Evaluator, structures: list[Structure]) -> None:
    single = StructureBatch.from_structures(structures, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"float32.*float64"):
        evaluator.evaluate(single, NeighborList(evaluator.cutoff_A))
    with pytest.raises(ValueError, match=r"ends at 3\.0 A"):
        evaluate(evaluator, structures, NeighborList(3.0))
    with pytest.raises(ValueError, match=r"no elements \[26\]"):
        evaluate(evaluator, [Structure(np.array([26]), np.zeros((1, 3)), 3 * np.eye(3))])


def test_agrees_on_the_demo_model() -> None:
    path = Path(__file__).parents[3] / "models" / "demo" / "demo.model"
    assert path.is_file(), f"{path} belongs to the repository"
    model = ModelFile("demo", path, hash_file(path))
    halides = [random_structure((11, 17, 49, 55), 10, seed=8, volume_per_atom_A3=32.0)]
    evaluator = Engine().evaluator(model, (11, 17, 49, 55), "float64")
    assert_equal(evaluate(evaluator, halides), with_calculator(halides, model))
