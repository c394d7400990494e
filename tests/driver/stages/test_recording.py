from __future__ import annotations

import numpy as np
import pytest
import torch
from ase.build import bulk

from driver.archive.records import Structure
from driver.engine.batch import StructureBatch
from driver.engine.neighbors import NeighborList
from driver.engine.state import BOLTZMANN_EV_K, Particles, PhaseState
from driver.settings import DynamicsSettings
from driver.stages.recording import (
    Recorder,
    Watchdog,
    closest_pairs_A,
    empty_trajectory,
    energy_drift_meV_atom_ps,
    temperatures_K,
)
from driver.structures.convert import from_ase

SETTINGS = DynamicsSettings(
    timestep_fs=2.0,
    frame_interval_fs=10.0,
    segment_ps=0.2,
    equilibration_ps=0.0,
    production_ps=0.2,
    temperature_K=100.0,
)


def crystals():
    return [from_ase(bulk("Ar", "fcc", a=5.3, cubic=True)), from_ase(bulk("NaCl", "rocksalt", a=5.6))]


def state_of(structures, speed_A_fs=0.0):
    counts = [len(s) for s in structures]
    zeros = torch.zeros(sum(counts), 3, dtype=torch.float64)
    return PhaseState(
        Particles.from_masses([np.full(n, 40.0) for n in counts]),
        torch.as_tensor(np.concatenate([s.positions for s in structures])),
        zeros + speed_A_fs,
        zeros.clone(),
        torch.zeros(len(counts), dtype=torch.float64),
    )


def batch_of(structures):
    return StructureBatch.from_structures(structures, dtype=torch.float64)


def test_steps_and_times_of_a_segment_follow_on_the_one_before():
    trajectory = empty_trajectory(crystals()[0], 300, SETTINGS)
    np.testing.assert_array_equal(trajectory.step, np.arange(305, 401, 5))
    np.testing.assert_array_equal(trajectory.time_fs, 2.0 * trajectory.step)
    assert trajectory.positions_A.shape == (20, 4, 3)
    assert trajectory.positions_A.dtype == np.float32


def test_frames_go_to_their_own_trajectory_also_after_one_is_dropped():
    structures = crystals()
    recorder = Recorder([empty_trajectory(s, 0, SETTINGS) for s in structures])
    recorder.record(state_of(structures))
    recorder.select([1])
    recorder.record(state_of(structures[1:]))
    (left,) = recorder.trajectories
    np.testing.assert_allclose(left.positions_A[:2], np.stack([structures[1].positions] * 2), atol=1e-6)
    np.testing.assert_array_equal(left.numbers, structures[1].numbers)


def test_drift_is_the_slope_per_atom():
    trajectory = empty_trajectory(crystals()[0], 0, SETTINGS)
    trajectory.kinetic_energy_eV[:] = np.sin(np.arange(20.0))
    trajectory.potential_energy_eV[:] = 0.008 * trajectory.time_fs * 1e-3 - trajectory.kinetic_energy_eV
    assert energy_drift_meV_atom_ps(trajectory) == pytest.approx(2.0)


def test_temperature_counts_three_degrees_of_freedom_less():
    trajectory = empty_trajectory(crystals()[0], 0, SETTINGS)
    trajectory.kinetic_energy_eV[:] = 0.5 * 9 * BOLTZMANN_EV_K * 250.0
    np.testing.assert_allclose(temperatures_K(trajectory), 250.0)


def test_closest_pairs_see_periodic_images_and_keep_structures_apart():
    structures = crystals()
    structures[1].positions[1] = structures[1].cell[0] * 0.9
    batch = batch_of([*structures, Structure(np.array([18]), np.zeros((1, 3)), np.eye(3) * 50)])
    closest = closest_pairs_A(batch, NeighborList(6.0).update(batch))
    np.testing.assert_allclose(closest[:2], [5.3 / 2**0.5, 0.1 * 5.6 / 2**0.5])
    assert closest[2] == torch.inf


def test_a_sound_crystal_is_left_in_peace():
    structures = crystals()
    batch = batch_of(structures)
    assert Watchdog(2, SETTINGS).explosions(state_of(structures), batch, NeighborList(6.0).update(batch)) == {}


@pytest.mark.parametrize("field", ["positions", "forces", "energies"])
def test_what_is_not_finite_is_seen_in_its_own_structure(field):
    structures = crystals()
    state = state_of(structures)
    getattr(state, field)[-1] = torch.nan
    batch = batch_of(structures).moved(state.positions)
    reasons = Watchdog(2, SETTINGS).explosions(state, batch, NeighborList(6.0).update(batch))
    assert list(reasons) == [1]
    assert "not finite" in reasons[1]


def test_ten_hot_frames_are_needed_unless_one_outweighs_them():
    structures = crystals()[:1]
    batch = batch_of(structures)
    edges = NeighborList(6.0).update(batch)
    unit = state_of(structures, 1e-3).temperatures().item()

    def frames_until_exploded(temperature):
        state = state_of(structures, 1e-3 * (temperature / unit) ** 0.5)
        watchdog = Watchdog(1, SETTINGS)
        return next((n for n in range(1, 21) if watchdog.explosions(state, batch, edges)), None)

    assert frames_until_exploded(399.0) is None
    assert frames_until_exploded(401.0) == 10
    assert frames_until_exploded(801.0) == 5
    assert frames_until_exploded(4001.0) == 1
