"""Label elpasolite cells with the teacher, CHGNet 0.3.0, and write the demo model's data sets.

Writes train.extxyz, valid.extxyz, test.extxyz and geometries.json (the teacher's relaxed cubic cells) to a folder.
Needs the teacher's package (requirements-retrain.txt). One finished compound is one file in FOLDER/labels, and is not
made again, so that an interrupted run is continued by the same command.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.io import read, write
from chgnet.model import CHGNet, CHGNetCalculator
from elpasolites import COMPOUNDS, HELD_OUT, CubicGeometry, Elpasolite, langevin_frames, relax_cubic

TEACHER_VERSION = "0.3.0"


@dataclass(frozen=True)
class Sampling:
    """Which distorted cells are made of each compound (conventional cells of 40 atoms)."""

    seed: int = 2026
    volume_changes: tuple[float, ...] = (-0.06, -0.04, -0.02, 0.02, 0.04, 0.06, 0.08)
    rattles_A: tuple[float, ...] = (0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.10, 0.13, 0.16, 0.19, 0.22, 0.25)
    rattle_strain: float = 0.015
    shears: tuple[float, ...] = (0.01, 0.02, 0.04)
    # Not below 0.04 A: the teacher's forces have a cusp at straight M-X-M' angles, which no smooth model can follow.
    displacements_A: tuple[float, ...] = (0.04, 0.06, 0.10, 0.15, 0.20, 0.30)
    tilts_deg: tuple[float, ...] = (3.0, 5.0, 7.0, 9.0, 11.0, 13.0)
    # (temperature in K, change of volume) of each trajectory
    trajectories: tuple[tuple[float, float], ...] = ((300.0, 0.01), (600.0, 0.02), (900.0, 0.03))
    frames_per_trajectory: int = 4
    test_frames: int = 4
    held_out_test_frames: int = 24
    max_force_eV_A: float = 5.0
    validation_every: int = 20


def strained(atoms: Atoms, strain: np.ndarray) -> Atoms:
    """Return a copy under the homogeneous deformation 1 + `strain` (3x3)."""
    result = atoms.copy()
    result.set_cell(atoms.cell[:] @ (np.eye(3) + strain), scale_atoms=True)
    return result


def random_strain(rng: np.random.Generator, amplitude: float) -> np.ndarray:
    """Return a symmetric 3x3 strain with normally distributed components."""
    strain = rng.normal(scale=amplitude, size=(3, 3))
    return (strain + strain.T) / 2.0


def volume_scaled(atoms: Atoms, change: float) -> Atoms:
    """Return a copy whose volume is larger by the fraction `change`."""
    return strained(atoms, np.eye(3) * ((1.0 + change) ** (1.0 / 3.0) - 1.0))


def rattled(atoms: Atoms, rng: np.random.Generator, amplitude_A: float) -> Atoms:
    """Return a copy with normally distributed displacements of standard deviation `amplitude_A`."""
    result = atoms.copy()
    result.positions += rng.normal(scale=amplitude_A, size=result.positions.shape)
    return result


def tilted(atoms: Atoms, compound: Elpasolite, rng: np.random.Generator, angle_deg: float) -> Atoms:
    """Return a copy whose MX6 octahedra are rotated about a random axis, in phase or out of phase from cell to cell.

    The sense alternates with a random commensurate wave vector of the conventional cell (Gamma or one of the X points);
    M'X6 octahedra share the corners and follow. The cell shrinks as rigid octahedra would make it.
    """
    angle = np.deg2rad(angle_deg)
    axis = rng.normal(size=3)
    axis /= np.linalg.norm(axis)
    wave = [np.zeros(3), *np.eye(3)][rng.integers(4)]
    result = strained(atoms, np.eye(3) * (np.cos(angle) ** (2.0 / 3.0) - 1.0))
    halides = result.symbols.search(compound.halide)
    for centre in result.symbols.search(compound.m_site):
        arms = result.get_distances(centre, halides, mic=True, vector=True)
        corners = np.argsort(np.linalg.norm(arms, axis=1))[:6]
        sense = np.cos(2.0 * np.pi * atoms.get_scaled_positions()[centre] @ wave)
        result.positions[halides[corners]] += np.tan(angle) * np.cross(sense * axis, arms[corners])
    return result


def distorted_cells(
    cubic: Atoms, compound: Elpasolite, sampling: Sampling, rng: np.random.Generator
) -> Iterator[tuple[str, Atoms]]:
    """Yield (kind, cell) for all static cells of one compound, the undistorted one first."""
    yield "cubic", cubic.copy()
    for change in sampling.volume_changes:
        yield "volume", volume_scaled(cubic, change)
    for amplitude_A in sampling.rattles_A:
        yield "rattle", rattled(strained(cubic, random_strain(rng, sampling.rattle_strain)), rng, amplitude_A)
    for shear in sampling.shears:
        yield "shear", rattled(strained(cubic, random_strain(rng, shear)), rng, 0.01)
    for distance_A in sampling.displacements_A:
        cell = cubic.copy()
        direction = rng.normal(size=3)
        cell.positions[rng.integers(len(cell))] += distance_A * direction / np.linalg.norm(direction)
        yield "displacement", cell
    for angle_deg in sampling.tilts_deg:
        yield "tilt", rattled(tilted(cubic, compound, rng, angle_deg), rng, 0.02)


def trajectory_cells(
    cubic: Atoms, calculator: Calculator, sampling: Sampling, rng: np.random.Generator
) -> Iterator[tuple[str, Atoms]]:
    """Yield (kind, cell) of short teacher trajectories in strained cells."""
    for temperature_K, change in sampling.trajectories:
        start = rattled(strained(volume_scaled(cubic, change), random_strain(rng, 0.005)), rng, 0.05)
        start.calc = calculator
        frames = langevin_frames(start, temperature_K, rng, sampling.frames_per_trajectory, 20, 40)
        yield from ((f"md{temperature_K:.0f}K", frame) for frame in frames)


def labelled(cell: Atoms, calculator: Calculator, compound: Elpasolite, kind: str, split: str) -> Atoms:
    """Return a copy with the teacher's energy (eV), forces (eV/A) and stress (eV/A^3) under the keys MACE reads."""
    frame = Atoms(cell.symbols, positions=cell.positions, cell=cell.cell, pbc=True)
    frame.calc = calculator
    energy, forces, stress = frame.get_potential_energy(), frame.get_forces(), frame.get_stress()
    frame.calc = None
    frame.info.update(
        compound=compound.formula,
        kind=kind,
        split=split,
        REF_energy=float(energy),
        REF_stress=np.asarray(stress, dtype=float),
    )
    frame.arrays["REF_forces"] = np.asarray(forces, dtype=float)
    return frame


def label_compound(
    compound: Elpasolite, calculator: Calculator, sampling: Sampling
) -> tuple[CubicGeometry, list[Atoms]]:
    """Relax one compound with the teacher and label all of its cells; test frames are a separate run at 300 K."""
    train_rng, test_rng = np.random.default_rng([sampling.seed, COMPOUNDS.index(compound)]).spawn(2)
    geometry = relax_cubic(compound, calculator)
    cubic = compound.crystal(geometry.lattice_constant_A, geometry.halide_x)
    frames = []
    if compound != HELD_OUT:
        for kind, cell in distorted_cells(cubic, compound, sampling, train_rng):
            frames.append(labelled(cell, calculator, compound, kind, "train"))
        for kind, cell in trajectory_cells(cubic, calculator, sampling, train_rng):
            frames.append(labelled(cell, calculator, compound, kind, "train"))
    start = rattled(cubic, test_rng, 0.05)
    start.calc = calculator
    count = sampling.held_out_test_frames if compound == HELD_OUT else sampling.test_frames
    for cell in langevin_frames(start, 300.0, test_rng, count, 20, 100):
        frames.append(labelled(cell, calculator, compound, "md300K", "test"))
    kept = [frame for frame in frames if np.abs(frame.arrays["REF_forces"]).max() <= sampling.max_force_eV_A]
    return geometry, kept


def write_split(folder: Path, frames: list[Atoms], geometries: dict[str, CubicGeometry], sampling: Sampling) -> None:
    """Write the three data sets, the teacher's cubic cells and the settings to `folder`."""
    training = [frame for frame in frames if frame.info["split"] == "train"]
    write(folder / "valid.extxyz", training[:: sampling.validation_every])
    write(folder / "train.extxyz", [f for i, f in enumerate(training) if i % sampling.validation_every])
    write(folder / "test.extxyz", [frame for frame in frames if frame.info["split"] == "test"])
    record = {
        "teacher": f"CHGNet {TEACHER_VERSION}",
        "sampling": asdict(sampling),
        "geometries": {formula: asdict(geometry) for formula, geometry in geometries.items()},
    }
    (folder / "geometries.json").write_text(json.dumps(record, indent=2) + "\n")


def main() -> None:
    """Label all compounds, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where to write the data sets")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: %(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    labels = arguments.folder / "labels"
    labels.mkdir(parents=True, exist_ok=True)
    sampling = Sampling()
    calculator = CHGNetCalculator(CHGNet.load(model_name=TEACHER_VERSION, use_device="cpu"), use_device="cpu")
    frames: list[Atoms] = []
    geometries: dict[str, CubicGeometry] = {}
    for compound in COMPOUNDS:
        start = time.perf_counter()
        cells, cubic = labels / f"{compound.formula}.extxyz", labels / f"{compound.formula}.json"
        if not cubic.exists():
            geometry, made = label_compound(compound, calculator, sampling)
            write(cells, made)
            cubic.write_text(json.dumps(asdict(geometry)))
        frames += read(cells, index=":")
        geometries[compound.formula] = CubicGeometry(**json.loads(cubic.read_text()))
        print(f"{compound.formula}: {len(frames)} cells so far, {time.perf_counter() - start:.0f} s", flush=True)
    write_split(arguments.folder, frames, geometries, sampling)


if __name__ == "__main__":
    main()
