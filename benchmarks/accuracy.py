"""Latdyn's numbers against the same physics done directly with ASE, phonopy and mace-torch's own calculator.

    python benchmarks/accuracy.py [--materials Cs2NaInCl6 Cs2AgBiBr6] [--production-ps 2]

Prints, for each material: the lattice constant against ASE's relaxation, phonon frequencies at all commensurate points
against phonopy's, the drift of the total energy in NVE, and the mean and fluctuation of the temperature under the
Langevin thermostat against the canonical ones.
"""

from __future__ import annotations

import argparse
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.constraints import FixSymmetry
from ase.filters import FrechetCellFilter
from ase.optimize import FIRE
from phonopy import Phonopy
from phonopy.structure.atoms import PhonopyAtoms

from analysis.harmonic import build_phonopy, commensurate_modes
from analysis.inputs import force_constants
from driver.archive.h5md import read_trajectory
from driver.archive.reader import ArchiveView, open_archive
from driver.config import compose
from driver.models import cache_folder, resolve
from driver.run import run
from driver.settings import RelaxSettings
from driver.structures.convert import to_ase

MATERIALS = ("Cs2NaInCl6", "Cs2AgBiBr6")


@dataclass(frozen=True)
class Agreement:
    """Differences between an archive and direct calculations for one material."""

    material: str
    lattice_constant_A: float
    lattice_difference_A: float
    frequencies: int
    frequency_difference_THz: float


def run_campaign(folder: Path, materials: Sequence[str], *overrides: str) -> Path:
    """Run a campaign in this process; return its archive."""
    arguments = [
        f"materials.formulas=[{','.join(materials)}]",
        f"runs={folder}",
        "campaign=smoke",
        "execution.device=cpu",
        "execution.threads=1",
        *overrides,
    ]
    code = run(arguments)
    if code != 0:
        raise SystemExit(f"the campaign ended with exit code {code}")
    return compose(arguments).settings.archive


def compare(view: ArchiveView, material: str, model: str = "demo") -> Agreement:
    """Relax and displace directly with ASE, phonopy and mace-torch's calculator, and compare with the archive."""
    from mace.calculators import MACECalculator

    path = resolve(compose(["campaign=smoke"]).models[0], cache_folder()).path
    calculator = MACECalculator(model_paths=str(path), default_dtype="float64", device="cpu")
    settings = RelaxSettings()
    atoms = to_ase(view.structure(material))
    atoms.calc = calculator
    atoms.set_constraint(FixSymmetry(atoms, symprec=settings.symprec_A))
    FIRE(FrechetCellFilter(atoms), logfile=None).run(fmax=settings.fmax_eV_A, steps=settings.max_steps)
    ours = view.relaxed(material, model)
    frequencies = direct_frequencies_THz(
        atoms, calculator, view.read_array(material, model, "displace", "supercell_matrix")
    )
    stored = commensurate_modes(build_phonopy(force_constants(view, material, model, 0.01))).frequencies_THz
    conventional = np.sqrt(2.0)
    return Agreement(
        material,
        conventional * float(np.linalg.norm(ours.cell[0])),
        conventional * float(np.abs(np.linalg.norm(ours.cell, axis=1) - atoms.cell.lengths()).max()),
        stored.size,
        float(np.abs(np.sort(stored.ravel()) - np.sort(frequencies.ravel())).max()),
    )


def direct_frequencies_THz(atoms: Atoms, calculator: object, matrix: np.ndarray) -> np.ndarray:
    """Frequencies at the commensurate points of a supercell by phonopy, one ASE force call per displaced cell."""
    cell = PhonopyAtoms(
        symbols=atoms.get_chemical_symbols(), positions=atoms.positions, cell=atoms.cell[:], masses=atoms.get_masses()
    )
    phonon = Phonopy(cell, supercell_matrix=matrix, primitive_matrix="auto")
    phonon.generate_displacements(distance=0.01)
    perfect = _forces(phonon.supercell, calculator)
    phonon.forces = [_forces(displaced, calculator) - perfect for displaced in phonon.supercells_with_displacements]
    phonon.produce_force_constants()
    phonon.symmetrize_force_constants()
    from phonopy.harmonic.dynmat_to_fc import get_commensurate_points

    points = get_commensurate_points(
        np.rint(np.linalg.inv(phonon.primitive_matrix) @ phonon.supercell_matrix).astype(int)
    )
    phonon.run_qpoints(points)
    return np.asarray(phonon.qpoints.frequencies)


def _forces(cell: PhonopyAtoms, calculator: object) -> np.ndarray:
    atoms = Atoms(cell.symbols, positions=cell.positions, cell=cell.cell, pbc=True)
    atoms.calc = calculator
    return atoms.get_forces()


def nve_drift_meV_atom_ps(folder: Path, material: str, production_ps: float) -> tuple[float, float]:
    """Slope of the total energy, and its fluctuation about it (meV/atom), of an NVE run in float32."""
    archive = run_campaign(
        folder, [material], *_long("nve", production_ps), "dynamics.ensemble=nve", "stages=[relax,dynamics]"
    )
    with open_archive(archive) as view:
        trajectory = read_trajectory(view, material, "demo", 0)
    energy = trajectory.potential_energy_eV + trajectory.kinetic_energy_eV
    energy = 1000.0 * (energy - energy.mean()) / len(trajectory.numbers)
    slope = np.polyfit(trajectory.time_fs / 1000.0, energy, 1)
    return float(slope[0]), float((energy - np.polyval(slope, trajectory.time_fs / 1000.0)).std())


def langevin_temperature_K(folder: Path, material: str, production_ps: float) -> tuple[float, float, float]:
    """Mean temperature, its standard deviation, and the canonical one, of a Langevin run at 300 K after 0.5 ps."""
    archive = run_campaign(folder, [material], *_long("langevin", production_ps), "stages=[relax,dynamics]")
    with open_archive(archive) as view:
        trajectory = read_trajectory(view, material, "demo", 0)
    freedom = 3 * len(trajectory.numbers) - 3
    temperature = 2.0 * trajectory.kinetic_energy_eV[trajectory.time_fs > 500.0] / (freedom * units.kB)
    return float(temperature.mean()), float(temperature.std()), 300.0 * np.sqrt(2.0 / freedom)


def _long(name: str, production_ps: float) -> list[str]:
    return [
        f"name={name}",
        "dynamics.equilibration_ps=0.5",
        f"dynamics.production_ps={production_ps}",
        "dynamics.segment_ps=0.5",
    ]


def main() -> None:
    """Run everything and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--materials", nargs="+", default=MATERIALS)
    parser.add_argument("--production-ps", type=float, default=2.0)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        archive = run_campaign(folder, options.materials)
        print(f"{'material':<14}{'a (A)':>10}{'|da| (A)':>12}{'modes':>8}{'max |dw| (THz)':>16}")
        with open_archive(archive) as view:
            for material in options.materials:
                row = compare(view, material)
                print(
                    f"{material:<14}{row.lattice_constant_A:>10.5f}{row.lattice_difference_A:>12.1e}"
                    f"{row.frequencies:>8}{row.frequency_difference_THz:>16.1e}"
                )
        material = options.materials[0]
        drift, noise = nve_drift_meV_atom_ps(folder, material, options.production_ps)
        print(f"NVE, {material}: drift {drift:+.2e} meV/atom/ps, fluctuation {noise:.2e} meV/atom")
        mean, spread, canonical = langevin_temperature_K(folder, material, options.production_ps)
        print(
            f"Langevin, {material}: T = {mean:.1f} K, standard deviation {spread:.1f} K (canonical {canonical:.1f} K)"
        )


if __name__ == "__main__":
    main()
