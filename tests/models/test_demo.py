"""The bundled demo model is the file its card describes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.data import chemical_symbols
from ase.io import read

DEMO = Path(__file__).parents[2] / "models" / "demo"
HELD_OUT_FRAMES = Path(__file__).parent / "data" / "cs2agbibr6_300K_teacher.extxyz"
# The committed frames are a sample of those behind the card's figure.
SAMPLING_MARGIN = 1.2


@pytest.fixture(scope="module")
def evaluation() -> dict:
    return json.loads((DEMO / "evaluation.json").read_text())


@pytest.fixture(scope="module")
def calculator():
    """Return the demo model in float64, leaving torch's default precision as it was."""
    torch = pytest.importorskip("torch")
    calculators = pytest.importorskip("mace.calculators")
    before = torch.get_default_dtype()
    yield calculators.MACECalculator(model_paths=str(DEMO / "demo.model"), device="cpu", default_dtype="float64")
    torch.set_default_dtype(before)


def evaluated(frame: Atoms, calculator) -> tuple[float, np.ndarray]:
    """Return the model's energy (eV) and forces (eV/A) of a labelled frame."""
    atoms = Atoms(frame.symbols, positions=frame.positions, cell=frame.cell, pbc=True)
    atoms.calc = calculator
    return atoms.get_potential_energy(), atoms.get_forces()


def test_file_is_small_and_has_the_recorded_sha256() -> None:
    digest, name = (DEMO / "demo.model.sha256").read_text().split()
    content = (DEMO / name).read_bytes()
    assert len(content) <= 3_000_000
    assert hashlib.sha256(content).hexdigest() == digest


def test_card_and_evaluation_describe_this_file(evaluation: dict) -> None:
    digest = hashlib.sha256((DEMO / "demo.model").read_bytes()).hexdigest()
    assert evaluation["model_sha256"] == digest
    card = (DEMO / "README.md").read_text()
    assert "not for science" in card
    for errors in evaluation["errors_at_300K"].values():
        assert f"{errors['force_rmse_meV_A']:.1f}" in card


def test_elements_are_those_of_the_card(calculator) -> None:
    known = {chemical_symbols[int(number)] for number in calculator.models[0].atomic_numbers}
    assert known == {"Rb", "Cs", "Na", "Ag", "In", "Sb", "Bi", "Cl", "Br"}


def test_held_out_compound_is_the_only_one_the_model_never_saw(evaluation: dict) -> None:
    assert len(evaluation["compounds"]) == 24
    assert [row["formula"] for row in evaluation["compounds"] if row["held_out"]] == ["Cs2AgBiBr6"]


def test_forces_on_held_out_compound_are_as_good_as_the_card_says(calculator, evaluation: dict) -> None:
    frames = read(HELD_OUT_FRAMES, index=":")
    assert len(frames) >= 6
    differences, energy_differences = [], []
    for frame in frames:
        energy, forces = evaluated(frame, calculator)
        differences.append(forces - frame.arrays["REF_forces"])
        energy_differences.append((energy - frame.info["REF_energy"]) / len(frame))
    expected = evaluation["errors_at_300K"]["held_out"]
    rmse_meV_A = 1e3 * np.sqrt(np.mean(np.square(differences)))
    energy_mae_meV_atom = 1e3 * np.mean(np.abs(energy_differences))
    assert rmse_meV_A < SAMPLING_MARGIN * expected["force_rmse_meV_A"]
    assert energy_mae_meV_atom < SAMPLING_MARGIN * expected["energy_mae_meV_atom"] + 0.5


def test_forces_are_the_gradient_of_the_energy(calculator) -> None:
    frame = read(HELD_OUT_FRAMES, index=0)
    _, forces = evaluated(frame, calculator)
    direction = np.random.default_rng(0).normal(size=forces.shape)
    step_A = 1e-4
    energies = []
    for sign in (1.0, -1.0):
        moved = frame.copy()
        moved.positions += sign * step_A * direction
        energies.append(evaluated(moved, calculator)[0])
    assert (energies[1] - energies[0]) / (2.0 * step_A) == pytest.approx(np.sum(forces * direction), rel=1e-5)
