"""The script that a user would write instead of a campaign: ASE, phonopy and mace-torch, one material after the other.

python benchmarks/campaign_script.py MODEL STEPS OUT STRUCTURE ...

Relaxes each structure, gets its force constants and runs STEPS steps of Langevin dynamics, with the settings that are
Latdyn's defaults; writes relaxed structures, phonopy's files and ASE trajectories into OUT.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from ase import Atoms, units
from ase.constraints import FixSymmetry
from ase.filters import FrechetCellFilter
from ase.io import read, write
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.optimize import FIRE
from mace.calculators import MACECalculator
from phonopy import Phonopy
from phonopy.structure.atoms import PhonopyAtoms

SUPERCELL = 2 * np.eye(3, dtype=int)


def relax(atoms: Atoms, calculator: MACECalculator) -> None:
    """Relax positions and cell, symmetry kept."""
    atoms.calc = calculator
    atoms.set_constraint(FixSymmetry(atoms, symprec=1e-3))
    FIRE(FrechetCellFilter(atoms), logfile=None).run(fmax=1e-4, steps=500)
    atoms.set_constraint()


def force_constants(atoms: Atoms, calculator: MACECalculator) -> Phonopy:
    """Return phonopy with force constants from displacements of 0.01 A."""
    cell = PhonopyAtoms(atoms.get_chemical_symbols(), positions=atoms.positions, cell=atoms.cell[:])
    phonon = Phonopy(cell, SUPERCELL, primitive_matrix="auto")
    phonon.generate_displacements(distance=0.01)
    forces = []
    for displaced in phonon.supercells_with_displacements:
        supercell = Atoms(displaced.symbols, positions=displaced.positions, cell=displaced.cell, pbc=True)
        supercell.calc = calculator
        forces.append(supercell.get_forces())
    phonon.forces = forces
    phonon.produce_force_constants()
    phonon.symmetrize_force_constants()
    return phonon


def dynamics(atoms: Atoms, calculator: MACECalculator, steps: int, path: Path) -> None:
    """Run Langevin dynamics at 300 K in the supercell, a frame every 10 fs."""
    supercell = atoms.repeat((2, 2, 2))
    supercell.calc = calculator
    MaxwellBoltzmannDistribution(supercell, temperature_K=300.0)
    run = Langevin(
        supercell,
        2.0 * units.fs,
        temperature_K=300.0,
        friction=10e-3 / units.fs,
        trajectory=str(path),
        loginterval=5,
    )
    run.run(steps)


def main() -> None:
    """Do all materials."""
    torch.set_num_threads(1)
    model, steps, out = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    double = MACECalculator(model_paths=model, device="cpu", default_dtype="float64")
    single = MACECalculator(model_paths=model, device="cpu", default_dtype="float32")
    for path in map(Path, sys.argv[4:]):
        atoms = read(path)
        relax(atoms, double)
        write(out / f"{path.stem}-relaxed.extxyz", atoms)
        force_constants(atoms, double).save(out / f"{path.stem}-phonopy.yaml", settings={"force_constants": True})
        dynamics(atoms, single, steps, out / f"{path.stem}.traj")


if __name__ == "__main__":
    main()
