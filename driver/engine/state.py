"""The batched state of a molecular-dynamics run: many structures side by side, in float64.

Units: positions in angstrom, velocities in angstrom/fs, masses in u, energies in eV, forces in eV/angstrom.

The total momentum of every structure is zero throughout, in all ensembles: a crystal that drifts as a whole would spoil
the displacements from its reference positions. A structure of n atoms therefore has 3n - 3 degrees of freedom, and that
is the number that stands in every temperature here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from ase import units

ACCELERATION = units.fs**2
"""Acceleration in angstrom/fs^2 that 1 eV/angstrom gives to 1 u (0.009648533)."""

BOLTZMANN_EV_K = units.kB
"""Boltzmann constant in eV/K."""


def degrees_of_freedom(atoms: int) -> int:
    """Return the number of velocity components of a structure whose total momentum is zero, 3 * atoms - 3."""
    return 3 * atoms - 3


@dataclass(frozen=True)
class Particles:
    """What stays the same while the atoms of a batch move.

    Attributes
    ----------
    masses : (N, 1) float64
        In u.
    mass_fractions : (N, 1) float64
        Each atom's share of the mass of its structure.
    accelerations : (N, 1) float64
        Acceleration in angstrom/fs^2 that a force of 1 eV/angstrom causes.
    thermal_speeds : (N, 1) float64
        Standard deviation of a velocity component at 1 K, in angstrom/fs.
    com_thermal_speeds : (B, 1) float64
        The same for the centre of mass of each structure.
    system : (N,) int64
        Structure that an atom belongs to; ascending.
    counts : tuple of int
        Atoms per structure.
    """

    masses: torch.Tensor
    mass_fractions: torch.Tensor
    accelerations: torch.Tensor
    thermal_speeds: torch.Tensor
    com_thermal_speeds: torch.Tensor
    system: torch.Tensor
    counts: tuple[int, ...]

    @classmethod
    def from_masses(cls, masses: Sequence[npt.NDArray[np.float64]], *, device: torch.device | str = "cpu") -> Particles:
        """Lay out the structures with these masses, one array (n,) in u per structure."""
        counts = tuple(len(m) for m in masses)
        system = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)).to(device)
        column = torch.as_tensor(np.concatenate(masses), dtype=torch.float64, device=device)[:, None]
        totals = torch.as_tensor([float(m.sum()) for m in masses], dtype=torch.float64, device=device)[:, None]
        return cls(
            masses=column,
            mass_fractions=column / totals[system],
            accelerations=ACCELERATION / column,
            thermal_speeds=torch.sqrt(BOLTZMANN_EV_K * ACCELERATION / column),
            com_thermal_speeds=torch.sqrt(BOLTZMANN_EV_K * ACCELERATION / totals),
            system=system,
            counts=counts,
        )

    def select(self, keep: Sequence[int]) -> Particles:
        """Return the layout of the structures `keep` (ascending indices) alone."""
        rows = atom_rows(self.counts, keep).to(self.system.device)
        counts = tuple(self.counts[i] for i in keep)
        return Particles(
            masses=self.masses[rows],
            mass_fractions=self.mass_fractions[rows],
            accelerations=self.accelerations[rows],
            thermal_speeds=self.thermal_speeds[rows],
            com_thermal_speeds=self.com_thermal_speeds[list(keep)],
            system=torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)).to(rows.device),
            counts=counts,
        )

    def com_velocities(self, velocities: torch.Tensor) -> torch.Tensor:
        """Return the velocity of each structure's centre of mass, (B, 3), from velocities (N, 3)."""
        # index_add rather than a sum over equal blocks: one structure's sum then never depends on its batch mates.
        sums = torch.zeros((len(self.counts), 3), dtype=velocities.dtype, device=velocities.device)
        return sums.index_add_(0, self.system, self.mass_fractions * velocities)

    def without_drift(self, velocities: torch.Tensor) -> torch.Tensor:
        """Return velocities (N, 3) with the total momentum of every structure removed."""
        return velocities - self.com_velocities(velocities)[self.system]


@dataclass(frozen=True)
class PhaseState:
    """Positions, velocities and forces of a batch at one time step; never changed in place.

    Attributes
    ----------
    particles : Particles
    positions : (N, 3) float64
        Unwrapped, in angstrom.
    velocities : (N, 3) float64
        In angstrom/fs, at the same time as the positions.
    forces : (N, 3) float64
        In eV/angstrom.
    energies : (B,) float64
        Potential energies in eV.
    """

    particles: Particles
    positions: torch.Tensor
    velocities: torch.Tensor
    forces: torch.Tensor
    energies: torch.Tensor

    def kinetic_energies(self) -> torch.Tensor:
        """Return the kinetic energy of each structure in eV, (B,) float64."""
        p = self.particles
        per_atom = (self.velocities.square().sum(dim=1, keepdim=True) / p.accelerations)[:, 0]
        return 0.5 * torch.zeros_like(self.energies).index_add_(0, p.system, per_atom)

    def temperatures(self) -> torch.Tensor:
        """Return the temperature of each structure in K, (B,) float64, over 3n - 3 degrees of freedom."""
        dof = torch.tensor([degrees_of_freedom(n) for n in self.particles.counts], device=self.energies.device)
        return 2.0 * self.kinetic_energies() / (dof * BOLTZMANN_EV_K)

    def select(self, keep: Sequence[int]) -> PhaseState:
        """Return the structures `keep` (ascending indices) alone, their values unchanged."""
        rows = atom_rows(self.particles.counts, keep).to(self.positions.device)
        return replace(
            self,
            particles=self.particles.select(keep),
            positions=self.positions[rows],
            velocities=self.velocities[rows],
            forces=self.forces[rows],
            energies=self.energies[list(keep)],
        )


def atom_rows(counts: Sequence[int], keep: Sequence[int]) -> torch.Tensor:
    """Return the indices of the atoms of structures `keep` in a batch of structures with `counts` atoms."""
    starts = np.concatenate([[0], np.cumsum(counts)])
    parts = [np.arange(starts[i], starts[i + 1]) for i in keep]
    return torch.from_numpy(np.concatenate(parts) if parts else np.empty(0, dtype=np.int64))


def maxwell_boltzmann_velocities(
    masses: npt.NDArray[np.float64], temperature_K: float, generator: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Draw velocities of one structure from the canonical distribution with zero total momentum.

    The kinetic energy fluctuates as it does in that ensemble; it is not scaled to the exact temperature.

    Parameters
    ----------
    masses : (n,) float64
        In u.
    temperature_K : float
    generator : numpy.random.Generator

    Returns
    -------
    (n, 3) float64
        In angstrom/fs.
    """
    speeds = np.sqrt(BOLTZMANN_EV_K * temperature_K * ACCELERATION / masses)[:, None]
    velocities = speeds * generator.standard_normal((len(masses), 3))
    return velocities - (masses / masses.sum()) @ velocities
