"""Integrators of batched molecular dynamics: one vectorised step for all structures of a batch.

Each needs one evaluation of the forces per step, which may be in float32; positions and velocities are float64. All
sample with the total momentum of every structure zero, hence with 3n - 3 degrees of freedom (see state.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import torch

from driver.engine.interface import Evaluation
from driver.engine.noise import Draw
from driver.engine.state import PhaseState
from driver.settings import DynamicsSettings

ForceField = Callable[[torch.Tensor], Evaluation]
"""Positions (N, 3) float64 in angstrom -> energies and forces of the batch."""


class Integrator(Protocol):
    """Advances a batch by one time step."""

    quantities: ClassVar[tuple[str, ...]]
    """The fields of `Draw` that a step uses."""

    def step(self, state: PhaseState, draw: Draw, force_field: ForceField) -> PhaseState:
        """Return the state one time step later; `draw` holds this step's random numbers."""
        ...


@dataclass(frozen=True)
class VelocityVerlet:
    """Microcanonical dynamics (nve) by velocity Verlet."""

    timestep_fs: float
    quantities: ClassVar[tuple[str, ...]] = ()

    def step(self, state: PhaseState, draw: Draw, force_field: ForceField) -> PhaseState:
        """Return the state one time step later; `draw` is not used."""
        velocities = _kicked(state.velocities, state, 0.5 * self.timestep_fs)
        moved = _evaluated(state, state.positions + self.timestep_fs * velocities, force_field)
        return replace(moved, velocities=_kicked(velocities, moved, 0.5 * self.timestep_fs))


@dataclass(frozen=True)
class Andersen:
    """Canonical dynamics by velocity Verlet and random collisions (Andersen, J. Chem. Phys. 72, 2384 (1980)).

    After each step an atom collides with probability `collision_probability`: its velocity is drawn anew from the
    Maxwell-Boltzmann distribution. The total momentum stays zero, and exactly so: a centre-of-mass velocity is drawn
    first and added to all atoms, which makes their velocities a sample of the unconstrained distribution; that is what
    collisions leave invariant; the total momentum is then removed again. Removing it alone, without adding it first,
    would cool the structure. (So does `ase.md.andersen.Andersen`, whose collisions are per component, not per atom.)
    """

    timestep_fs: float
    temperature_K: float
    collision_probability: float
    quantities: ClassVar[tuple[str, ...]] = ("kicks", "chances", "com_kicks")

    def step(self, state: PhaseState, draw: Draw, force_field: ForceField) -> PhaseState:
        """Return the state one time step later."""
        assert draw.kicks is not None and draw.chances is not None and draw.com_kicks is not None
        moved = VelocityVerlet(self.timestep_fs).step(state, draw, force_field)
        p = state.particles
        speed = math.sqrt(self.temperature_K)
        floating = moved.velocities + (speed * p.com_thermal_speeds * draw.com_kicks)[p.system]
        collided = (draw.chances < self.collision_probability)[:, None]
        velocities = torch.where(collided, speed * p.thermal_speeds * draw.kicks, floating)
        return replace(moved, velocities=p.without_drift(velocities))


@dataclass(frozen=True)
class Langevin:
    """Canonical dynamics by the BAOAB splitting (Leimkuhler and Matthews, Appl. Math. Res. eXpress 2013, 34 (2013)).

    Positions of a harmonic crystal are sampled exactly at any stable time step dt; the kinetic energy of a mode of
    angular frequency w is low by the factor 1 - (w dt)^2 / 4. Friction and noise act on the velocities relative to the
    centre of mass, which leaves the canonical distribution with zero total momentum invariant.
    """

    timestep_fs: float
    temperature_K: float
    friction_per_ps: float
    quantities: ClassVar[tuple[str, ...]] = ("kicks",)

    def step(self, state: PhaseState, draw: Draw, force_field: ForceField) -> PhaseState:
        """Return the state one time step later."""
        assert draw.kicks is not None
        p, half = state.particles, 0.5 * self.timestep_fs
        decay = math.exp(-self.friction_per_ps * 1e-3 * self.timestep_fs)
        speed = math.sqrt(self.temperature_K * (1.0 - decay * decay))
        before = _kicked(state.velocities, state, half)
        # Projecting the sum, not the noise alone, also removes what rounding of float32 forces has added.
        after = p.without_drift(torch.addcmul(decay * before, p.thermal_speeds, draw.kicks, value=speed))
        moved = _evaluated(state, state.positions + half * (before + after), force_field)
        return replace(moved, velocities=_kicked(after, moved, half))


def make_integrator(settings: DynamicsSettings) -> Integrator:
    """Return the integrator of the settings' ensemble."""
    if settings.ensemble == "langevin":
        return Langevin(settings.timestep_fs, settings.temperature_K, settings.friction_per_ps)
    if settings.ensemble == "andersen":
        return Andersen(settings.timestep_fs, settings.temperature_K, settings.collision_probability)
    return VelocityVerlet(settings.timestep_fs)


def _kicked(velocities: torch.Tensor, state: PhaseState, time_fs: float) -> torch.Tensor:
    return torch.addcmul(velocities, state.forces, state.particles.accelerations, value=time_fs)


def _evaluated(state: PhaseState, positions: torch.Tensor, force_field: ForceField) -> PhaseState:
    evaluation = force_field(positions)
    return replace(
        state,
        positions=positions,
        forces=evaluation.forces.to(positions.dtype),
        energies=evaluation.energy.to(positions.dtype),
    )
