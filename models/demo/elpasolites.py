"""The compounds of the demo model, their cubic prototype and how it is relaxed and run.

Shared by the scripts beside it, so that labels and evaluation use one definition of each crystal and one protocol.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np
from ase import Atoms, units
from ase.calculators.calculator import Calculator
from ase.constraints import FixSymmetry
from ase.filters import FrechetCellFilter
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary
from ase.optimize import BFGS
from ase.spacegroup import crystal

STARTING_LATTICE_CONSTANT_A = {"Cl": 10.6, "Br": 11.2}
STARTING_HALIDE_X = 0.25


@dataclass(frozen=True)
class Elpasolite:
    """A cubic halide double perovskite A2MM'X6 (Fm-3m): A on 8c, M on 4a, M' on 4b, X on 24e (x, 0, 0)."""

    a_site: str
    m_site: str
    m3_site: str
    halide: str

    @property
    def formula(self) -> str:
        """Formula in the order of the sites, such as Cs2AgBiBr6."""
        return f"{self.a_site}2{self.m_site}{self.m3_site}{self.halide}6"

    def crystal(self, lattice_constant_A: float, halide_x: float, primitive: bool = False) -> Atoms:
        """Return the cubic crystal: 40 atoms in the conventional cell, 10 in the primitive one."""
        return crystal(
            [self.a_site, self.m_site, self.m3_site, self.halide],
            [(0.25, 0.25, 0.25), (0.0, 0.0, 0.0), (0.5, 0.5, 0.5), (halide_x, 0.0, 0.0)],
            spacegroup=225,
            cellpar=[lattice_constant_A] * 3 + [90.0] * 3,
            primitive_cell=primitive,
        )


COMPOUNDS = tuple(Elpasolite(*sites) for sites in product(("Rb", "Cs"), ("Na", "Ag"), ("In", "Sb", "Bi"), ("Cl", "Br")))
HELD_OUT = Elpasolite("Cs", "Ag", "Bi", "Br")


@dataclass(frozen=True)
class CubicGeometry:
    """The two free parameters of a cubic elpasolite: lattice constant (A) and the halide's x (fractional)."""

    lattice_constant_A: float
    halide_x: float


def relax_cubic(compound: Elpasolite, calculator: Calculator, fmax_eV_A: float = 1e-3) -> CubicGeometry:
    """Relax cell and positions within Fm-3m.

    Parameters
    ----------
    compound
        What to relax.
    calculator
        Teacher or student, as an ASE calculator that knows forces and stress.
    fmax_eV_A
        Largest force, and cell gradient, at the end (eV/A).

    Raises
    ------
    RuntimeError
        If the relaxation has not converged in 300 steps.
    """
    atoms = compound.crystal(STARTING_LATTICE_CONSTANT_A[compound.halide], STARTING_HALIDE_X, primitive=True)
    atoms.set_constraint(FixSymmetry(atoms))
    atoms.calc = calculator
    if not BFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=fmax_eV_A, steps=300):
        raise RuntimeError(f"{compound.formula}: the cubic cell did not relax to {fmax_eV_A} eV/A in 300 steps")
    lattice_constant_A = float(4.0 * atoms.get_volume()) ** (1.0 / 3.0)
    m_index = atoms.symbols.search(compound.m_site)[0]
    bonds_A = atoms.get_distances(m_index, atoms.symbols.search(compound.halide), mic=True)
    return CubicGeometry(lattice_constant_A, float(bonds_A.mean()) / lattice_constant_A)


def langevin_frames(
    atoms: Atoms,
    temperature_K: float,
    rng: np.random.Generator,
    frames: int,
    interval_steps: int,
    equilibration_steps: int,
    timestep_fs: float = 3.0,
    friction_per_fs: float = 0.01,
) -> list[Atoms]:
    """Run Langevin dynamics from `atoms` (which keeps its calculator) and return `frames` copies of its states.

    The fixed cell is that of `atoms`; velocities start from a Maxwell distribution without net momentum.
    """
    MaxwellBoltzmannDistribution(atoms, temperature_K=temperature_K, rng=rng)
    Stationary(atoms)
    dynamics = Langevin(
        atoms,
        timestep_fs * units.fs,
        temperature_K=temperature_K,
        friction=friction_per_fs / units.fs,
        rng=rng,
        fixcm=False,  # ASE's correction of the centre of mass does not sample the canonical ensemble
    )
    dynamics.run(equilibration_steps)
    states = []
    for _ in range(frames):
        dynamics.run(interval_steps)
        states.append(atoms.copy())
    return states
