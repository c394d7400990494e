"""What a segment of dynamics leaves behind, and whether it is still a crystal."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from ase.data import atomic_masses

from driver.archive.h5md import Trajectory
from driver.archive.records import Structure
from driver.engine.batch import StructureBatch
from driver.engine.neighbors import Edges
from driver.engine.state import BOLTZMANN_EV_K, PhaseState, degrees_of_freedom
from driver.settings import DynamicsSettings

WINDOW_FRAMES = 10
"""Frames over which the temperature is averaged before it is judged."""


def empty_trajectory(supercell: Structure, first_step: int, settings: DynamicsSettings) -> Trajectory:
    """Return a segment's trajectory with room for its frames.

    Parameters
    ----------
    supercell : Structure
    first_step : int
        At which the segment starts; its first frame comes one frame interval later.
    settings : DynamicsSettings
    """
    frames = settings.segment_steps // settings.frame_steps
    step = first_step + settings.frame_steps * np.arange(1, frames + 1, dtype=np.int64)
    positions, velocities, forces = (np.empty((frames, len(supercell), 3), settings.frame_dtype) for _ in range(3))
    return Trajectory(
        numbers=supercell.numbers,
        masses_u=atomic_masses[supercell.numbers],
        cell_A=supercell.cell,
        positions_A=positions,
        velocities_A_fs=velocities,
        forces_eV_A=forces,
        step=step,
        time_fs=np.asarray(step * settings.timestep_fs, dtype=np.float64),
        potential_energy_eV=np.empty(frames),
        kinetic_energy_eV=np.empty(frames),
    )


def temperatures_K(trajectory: Trajectory) -> npt.NDArray[np.float64]:
    """Return the temperature of each frame (F,) over 3n - 3 degrees of freedom."""
    return 2.0 * trajectory.kinetic_energy_eV / (degrees_of_freedom(len(trajectory.numbers)) * BOLTZMANN_EV_K)


def energy_drift_meV_atom_ps(trajectory: Trajectory) -> float:
    """Return the slope of the total energy over time (least squares); 0 for fewer than two frames."""
    if len(trajectory) < 2:
        return 0.0
    total_meV = 1e3 * (trajectory.potential_energy_eV + trajectory.kinetic_energy_eV)
    return float(np.polyfit(trajectory.time_fs * 1e-3, total_meV, 1)[0] / len(trajectory.numbers))


class Recorder:
    """Gathers the frames of all replicas of a batch on the host.

    Parameters
    ----------
    trajectories : list of Trajectory
        As `empty_trajectory` makes them, one per structure of the batch, in order; filled in place.
    """

    def __init__(self, trajectories: list[Trajectory]) -> None:
        self.trajectories = trajectories
        self._frame = 0

    def record(self, state: PhaseState) -> None:
        """Add the present state as the next frame."""
        vectors = [x.cpu().numpy() for x in (state.positions, state.velocities, state.forces)]
        potential, kinetic = state.energies.cpu().numpy(), state.kinetic_energies().cpu().numpy()
        begin = 0
        for i, trajectory in enumerate(self.trajectories):
            end = begin + len(trajectory.numbers)
            stored = (trajectory.positions_A, trajectory.velocities_A_fs, trajectory.forces_eV_A)
            for frames, values in zip(stored, vectors, strict=True):
                frames[self._frame] = values[begin:end]
            trajectory.potential_energy_eV[self._frame] = potential[i]
            trajectory.kinetic_energy_eV[self._frame] = kinetic[i]
            begin = end
        self._frame += 1

    def select(self, keep: Sequence[int]) -> None:
        """Drop all trajectories but `keep`."""
        self.trajectories = [self.trajectories[i] for i in keep]


class Watchdog:
    """Tells at each frame which structures of a batch have exploded, and why.

    Parameters
    ----------
    size : int
        Structures in the batch.
    settings : DynamicsSettings
    """

    def __init__(self, size: int, settings: DynamicsSettings) -> None:
        self._window = min(WINDOW_FRAMES, settings.segment_steps // settings.frame_steps)
        self._limit_K = settings.max_temperature_factor * settings.temperature_K
        self._min_distance_A = settings.min_distance_A
        self._recent = np.zeros((0, size))

    def explosions(self, state: PhaseState, batch: StructureBatch, edges: Edges) -> dict[int, str]:
        """Return the reason for each structure that is beyond repair, by its index in the batch.

        Parameters
        ----------
        state : PhaseState
        batch : StructureBatch
            The same positions as in `state`, in the evaluator's precision.
        edges : Edges
            Pairs of atoms at these positions.
        """
        temperatures = state.temperatures().cpu().numpy()
        self._recent = np.concatenate([self._recent, temperatures[None]])[-self._window :]
        # Frames still missing count as 0 K: what exceeds the limit even so need not be waited for.
        averages = self._recent.sum(axis=0) / self._window
        closest = closest_pairs_A(batch, edges).cpu().numpy()
        broken = _non_finite(state).cpu().numpy()
        reasons: dict[int, str] = {}
        for i in range(state.energies.shape[0]):
            if broken[i] or i in edges.unusable:
                reasons[i] = "forces or positions are not finite"
            elif closest[i] < self._min_distance_A:
                reasons[i] = f"two atoms are {closest[i]:.2f} A apart, less than {self._min_distance_A:g} A"
            elif averages[i] > self._limit_K:
                reasons[i] = (
                    f"the temperature, averaged over {self._window} frames, is {averages[i]:.3g} K or more, above "
                    f"{self._limit_K:g} K"
                )
        return reasons

    def select(self, keep: Sequence[int]) -> None:
        """Drop all structures but `keep`."""
        self._recent = self._recent[:, list(keep)]


def closest_pairs_A(batch: StructureBatch, edges: Edges) -> torch.Tensor:
    """Return the distance of the closest pair within each structure (B,) in angstrom; infinite where there is none."""
    distances = edges.vectors(batch.positions).norm(dim=1)
    closest = torch.full((batch.size,), torch.inf, dtype=distances.dtype, device=distances.device)
    return closest.scatter_reduce_(0, batch.system[edges.receivers], distances, "amin")


def _non_finite(state: PhaseState) -> torch.Tensor:
    """Tell which structures (B,) have a position or force, or an energy, that is not finite."""
    sound = (torch.isfinite(state.positions) & torch.isfinite(state.forces)).all(dim=1)
    count = torch.zeros(len(state.particles.counts), dtype=torch.int64, device=sound.device)
    count.index_add_(0, state.particles.system, (~sound).to(torch.int64))
    return (count > 0) | ~torch.isfinite(state.energies)
