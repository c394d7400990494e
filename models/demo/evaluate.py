"""Measure the demo model against its teacher and write evaluation.json, from which the model card quotes.

Compared are: energies, forces and stresses on the teacher's 300 K frames that training never saw, relaxed cubic cells,
phonon frequencies at the points commensurate with a 2x2x2 supercell, and Langevin dynamics at 300 K with its
anharmonicity sigma. Needs the teacher's package (requirements-retrain.txt).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.io import read
from chgnet.model import CHGNet, CHGNetCalculator
from elpasolites import COMPOUNDS, HELD_OUT, CubicGeometry, Elpasolite, langevin_frames, relax_cubic
from mace.calculators import MACECalculator
from phonopy import Phonopy
from phonopy.structure.atoms import PhonopyAtoms

SUPERCELL = np.diag([2, 2, 2])
COMMENSURATE_POINTS = tuple(product((0.0, 0.5), repeat=3))
MODEL_DISPLACEMENT_A = 0.01
# The teacher's forces have a cusp at straight M-X-M' angles: smaller displacements do not measure its curvature.
TEACHER_DISPLACEMENT_A = 0.06
STABLE_ABOVE_THZ = -0.05
TEMPERATURE_K = 300.0
TIMESTEP_FS = 3.0
DYNAMICS_PS = 2.0
EQUILIBRATION_PS = 0.5
FRAME_STEPS = 10


@dataclass(frozen=True)
class ForceErrors:
    """Model minus teacher on 300 K frames."""

    frames: int
    force_rms_meV_A: float
    force_rmse_meV_A: float
    energy_mae_meV_atom: float
    stress_rmse_meV_A3: float


@dataclass(frozen=True)
class CompoundProperties:
    """Statics of one compound under the model, and under the teacher."""

    formula: str
    held_out: bool
    lattice_constant_A: float
    teacher_lattice_constant_A: float
    halide_x: float
    teacher_halide_x: float
    min_frequency_THz: float
    teacher_min_frequency_THz: float
    max_frequency_THz: float
    teacher_max_frequency_THz: float
    frequency_mae_THz: float
    harmonically_stable: bool


@dataclass(frozen=True)
class DynamicsCheck:
    """A Langevin run of the 80-atom supercell under the model; sigma after equilibration."""

    formula: str
    duration_ps: float
    mean_temperature_K: float
    largest_displacement_A: float
    smallest_distance_A: float
    sigma: float
    teacher_sigma: float | None
    ms_per_step: float


def force_errors(frames: list[Atoms], model: Calculator) -> ForceErrors:
    """Compare the model with the labels of `frames`."""
    force_differences, forces, energy_differences, stress_differences = [], [], [], []
    for frame in frames:
        atoms = Atoms(frame.symbols, positions=frame.positions, cell=frame.cell, pbc=True)
        atoms.calc = model
        forces.append(frame.arrays["REF_forces"])
        force_differences.append(atoms.get_forces() - frame.arrays["REF_forces"])
        energy_differences.append((atoms.get_potential_energy() - frame.info["REF_energy"]) / len(atoms))
        stress_differences.append(atoms.get_stress() - frame.info["REF_stress"])
    return ForceErrors(
        frames=len(frames),
        force_rms_meV_A=1e3 * root_mean_square(forces),
        force_rmse_meV_A=1e3 * root_mean_square(force_differences),
        energy_mae_meV_atom=1e3 * float(np.mean(np.abs(energy_differences))),
        stress_rmse_meV_A3=1e3 * root_mean_square(stress_differences),
    )


def root_mean_square(values: list[np.ndarray]) -> float:
    """Return the root mean square over all entries of all arrays."""
    return float(np.sqrt(np.mean(np.square(values))))


def harmonic_model(
    compound: Elpasolite, geometry: CubicGeometry, calculator: Calculator, displacement_A: float
) -> Phonopy:
    """Return phonopy's harmonic model of the 2x2x2 supercell (80 atoms), with symmetrised force constants."""
    cell = compound.crystal(geometry.lattice_constant_A, geometry.halide_x, primitive=True)
    unitcell = PhonopyAtoms(symbols=cell.get_chemical_symbols(), cell=cell.cell[:], positions=cell.positions)
    phonon = Phonopy(unitcell, supercell_matrix=SUPERCELL, primitive_matrix=np.eye(3))
    phonon.generate_displacements(distance=displacement_A)
    sets = []
    for displaced in phonon.supercells_with_displacements or ():
        atoms = to_ase(displaced)
        atoms.calc = calculator
        forces = atoms.get_forces()
        sets.append(forces - forces.mean(axis=0))
    phonon.forces = np.array(sets)
    phonon.produce_force_constants()
    phonon.symmetrize_force_constants()
    return phonon


def to_ase(cell: PhonopyAtoms) -> Atoms:
    """Return a phonopy cell as an ASE one."""
    return Atoms(cell.symbols, positions=cell.positions, cell=cell.cell, pbc=True)


def frequencies_THz(phonon: Phonopy) -> np.ndarray:
    """Return the frequencies at the commensurate points, shape (8, 30); imaginary ones are negative."""
    return np.array([phonon.get_frequencies(point) for point in COMMENSURATE_POINTS])


def properties(
    compound: Elpasolite, geometries: tuple[CubicGeometry, CubicGeometry], phonons: tuple[Phonopy, Phonopy]
) -> CompoundProperties:
    """Reduce relaxed cells and harmonic models, (model, teacher) each, to one row of the card."""
    model, teacher = (frequencies_THz(phonon) for phonon in phonons)
    return CompoundProperties(
        formula=compound.formula,
        held_out=compound == HELD_OUT,
        lattice_constant_A=geometries[0].lattice_constant_A,
        teacher_lattice_constant_A=geometries[1].lattice_constant_A,
        halide_x=geometries[0].halide_x,
        teacher_halide_x=geometries[1].halide_x,
        min_frequency_THz=float(model.min()),
        teacher_min_frequency_THz=float(teacher.min()),
        max_frequency_THz=float(model.max()),
        teacher_max_frequency_THz=float(teacher.max()),
        frequency_mae_THz=float(np.mean(np.abs(model - teacher))),
        harmonically_stable=bool(model.min() > STABLE_ABOVE_THZ),
    )


@dataclass(frozen=True)
class Trajectory:
    """Frames of a run with their displacements (A) and forces (eV/A), shape (frames, atoms, 3)."""

    frames: list[Atoms]
    displacements_A: np.ndarray
    forces_eV_A: np.ndarray
    seconds_per_step: float

    def sigma(self, force_constants_eV_A2: np.ndarray) -> float:
        """Return std(F - F2) / std(F) pooled over frames, atoms and components (Knoop et al. 2020)."""
        harmonic = -np.einsum("iajb,fjb->fia", force_constants_eV_A2.transpose(0, 2, 1, 3), self.displacements_A)
        return float(np.std(self.forces_eV_A - harmonic) / np.std(self.forces_eV_A))


def run_dynamics(phonon: Phonopy, calculator: Calculator, seed: int) -> Trajectory:
    """Run Langevin dynamics of the harmonic model's supercell at 300 K and keep the frames after equilibration."""
    atoms = to_ase(phonon.supercell)
    sites = atoms.positions.copy()
    atoms.calc = calculator
    equilibration = round(EQUILIBRATION_PS * 1e3 / TIMESTEP_FS)
    count = round((DYNAMICS_PS - EQUILIBRATION_PS) * 1e3 / TIMESTEP_FS) // FRAME_STEPS
    start = time.perf_counter()
    frames = langevin_frames(
        atoms, TEMPERATURE_K, np.random.default_rng(seed), count, FRAME_STEPS, equilibration, TIMESTEP_FS
    )
    seconds = (time.perf_counter() - start) / (equilibration + count * FRAME_STEPS)
    displacements, forces = [], []
    for frame in frames:
        shifts = frame.positions - sites
        displacements.append(shifts - np.average(shifts, axis=0, weights=frame.get_masses()))
        frame.calc = calculator
        forces.append(frame.get_forces())
    return Trajectory(frames, np.array(displacements), np.array(forces), seconds)


def check_dynamics(
    compound: Elpasolite, calculators: tuple[Calculator, Calculator | None], phonons: tuple[Phonopy, Phonopy]
) -> DynamicsCheck:
    """Run the model (and the teacher, if it is given) and describe the model's run.

    Raises
    ------
    RuntimeError
        If the model's run is not physical: non-finite, two atoms closer than 1.5 A, or a temperature off by 20 %.
    """
    seed = COMPOUNDS.index(compound)
    run = run_dynamics(phonons[0], calculators[0], seed)
    temperature_K = float(np.mean([frame.get_temperature() for frame in run.frames]))
    pairs = ~np.eye(len(run.frames[0]), dtype=bool)
    closest_A = min(float(frame.get_all_distances(mic=True)[pairs].min()) for frame in run.frames)
    if not np.isfinite(run.forces_eV_A).all() or closest_A < 1.5 or abs(temperature_K / TEMPERATURE_K - 1.0) > 0.2:
        raise RuntimeError(f"{compound.formula}: broken run, {temperature_K:.0f} K, closest atoms {closest_A:.2f} A")
    teacher_sigma = None
    if calculators[1] is not None:
        teacher_sigma = run_dynamics(phonons[1], calculators[1], seed).sigma(np.asarray(phonons[1].force_constants))
    return DynamicsCheck(
        formula=compound.formula,
        duration_ps=DYNAMICS_PS,
        mean_temperature_K=temperature_K,
        largest_displacement_A=float(np.linalg.norm(run.displacements_A, axis=2).max()),
        smallest_distance_A=closest_A,
        sigma=run.sigma(np.asarray(phonons[0].force_constants)),
        teacher_sigma=teacher_sigma,
        ms_per_step=1e3 * run.seconds_per_step,
    )


def evaluate(folder: Path, model_file: Path, dynamics: list[str], teacher_dynamics: list[str]) -> dict[str, Any]:
    """Measure everything and return it as plain data."""
    model = MACECalculator(model_paths=str(model_file), device="cpu", default_dtype="float64")
    teacher = CHGNetCalculator(CHGNet.load(model_name="0.3.0", use_device="cpu"), use_device="cpu")
    frames = read(folder / "test.extxyz", index=":")
    held_out = [frame for frame in frames if frame.info["compound"] == HELD_OUT.formula]
    others = [frame for frame in frames if frame.info["compound"] != HELD_OUT.formula]
    recorded = json.loads((folder / "geometries.json").read_text())["geometries"]
    errors = {"held_out": force_errors(held_out, model), "training_compounds": force_errors(others, model)}
    rows, runs = [], []
    phonons = {}
    for compound in COMPOUNDS:
        cells = relax_cubic(compound, model, fmax_eV_A=1e-4), CubicGeometry(**recorded[compound.formula])
        phonons[compound.formula] = (
            harmonic_model(compound, cells[0], model, MODEL_DISPLACEMENT_A),
            harmonic_model(compound, cells[1], teacher, TEACHER_DISPLACEMENT_A),
        )
        rows.append(properties(compound, cells, phonons[compound.formula]))
        print(rows[-1], flush=True)
    # Two calculators of one model: dynamics in float32 as in a campaign, the Hessian above in float64.
    fast = MACECalculator(model_paths=str(model_file), device="cpu", default_dtype="float32")
    for compound in COMPOUNDS:
        if compound.formula in dynamics:
            second = teacher if compound.formula in teacher_dynamics else None
            runs.append(check_dynamics(compound, (fast, second), phonons[compound.formula]))
            print(runs[-1], flush=True)
    return {
        "model_sha256": hashlib.sha256(model_file.read_bytes()).hexdigest(),
        "versions": {name: version(name) for name in ("torch", "mace-torch", "chgnet", "ase", "phonopy")},
        "errors_at_300K": {name: asdict(value) for name, value in errors.items()},
        "compounds": [asdict(row) for row in rows],
        "dynamics": [asdict(run) for run in runs],
    }


def print_card(evaluation: dict[str, Any]) -> None:
    """Print the tables of the model card as Markdown."""
    print("| compound | a (A) | teacher | x | teacher | min. frequency (THz) | teacher | MAE (THz) | stable |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in evaluation["compounds"]:
        print(
            f"| {row['formula']}{' (held out)' if row['held_out'] else ''}"
            f" | {row['lattice_constant_A']:.3f} | {row['teacher_lattice_constant_A']:.3f}"
            f" | {row['halide_x']:.4f} | {row['teacher_halide_x']:.4f}"
            f" | {row['min_frequency_THz']:.2f} | {row['teacher_min_frequency_THz']:.2f}"
            f" | {row['frequency_mae_THz']:.2f} | {'yes' if row['harmonically_stable'] else 'no'} |"
        )
    print("\n| compound | mean T (K) | largest displacement (A) | sigma(300 K) | teacher |")
    print("|---|---|---|---|---|")
    for row in evaluation["dynamics"]:
        teacher = "" if row["teacher_sigma"] is None else f"{row['teacher_sigma']:.2f}"
        print(
            f"| {row['formula']} | {row['mean_temperature_K']:.0f} | {row['largest_displacement_A']:.2f}"
            f" | {row['sigma']:.2f} | {teacher} |"
        )


def main() -> None:
    """Evaluate, write the figures, print the card's tables."""
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="the folder that make_training_set.py wrote")
    parser.add_argument("--model", type=Path, default=here / "demo.model")
    parser.add_argument("--output", type=Path, default=here / "evaluation.json")
    parser.add_argument("--dynamics", nargs="*", default=[c.formula for c in COMPOUNDS], help="which to run at 300 K")
    parser.add_argument("--teacher-dynamics", nargs="*", default=[], help="which of these to run with the teacher too")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    evaluation = evaluate(arguments.folder, arguments.model, arguments.dynamics, arguments.teacher_dynamics)
    arguments.output.write_text(json.dumps(evaluation, indent=1) + "\n")
    print_card(evaluation)


if __name__ == "__main__":
    main()
