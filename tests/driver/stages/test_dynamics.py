from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from ase.build import bulk
from toy_potentials import HarmonicCrystal, LennardJones, ToyEngine

from driver.archive.h5md import State
from driver.archive.records import TaskFailure, TaskKey, TaskResult
from driver.engine.interface import Evaluation
from driver.engine.state import BOLTZMANN_EV_K
from driver.models import ModelFile
from driver.settings import DynamicsSettings, SupercellSettings
from driver.stages.dynamics import dynamics
from driver.structures.convert import from_ase, to_ase
from driver.structures.supercells import make_supercell, supercell_matrix
from driver.tasks import TaskInput

MODEL = ModelFile("toy", None, "0" * 64)
SUPERCELL = SupercellSettings(matrix=(2, 2, 2))
SETTINGS = DynamicsSettings(
    temperature_K=20.0,
    timestep_fs=4.0,
    equilibration_ps=0.0,
    production_ps=0.8,
    segment_ps=0.4,
    frame_interval_fs=20.0,
    dtype="float64",
    frame_dtype="float64",
)
FRAMES = 20


def argon(a=5.35):
    return from_ase(bulk("Ar", "fcc", a=a))


def engine(**parameters):
    return ToyEngine(lambda dtype: LennardJones(dtype=dtype, **parameters), lacking=[54])


def harmonic():
    """Eight atoms, each joined to each other by springs of 0.5 eV/A^2: one frequency (period 0.2 ps for argon)."""
    sites = make_supercell(argon(), supercell_matrix(argon(), SUPERCELL)).positions
    phi = np.kron(0.5 * (8 * np.eye(8) - np.ones((8, 8))), np.eye(3))
    return ToyEngine(lambda dtype: HarmonicCrystal({8: (sites, phi)}, dtype))


def task(material="Ar", structure=None, segment=0, states=None):
    return TaskInput(TaskKey(material, "toy", "dynamics", segment), structure or argon(), states)


def run(inputs, settings=SETTINGS, toys=None, **options):
    return list(dynamics(inputs, MODEL, toys or engine(), SUPERCELL, settings, **{"seed": 11, **options}))


def result_of(inputs, settings=SETTINGS, **options):
    (outcome,) = run(inputs, settings, **options)
    assert isinstance(outcome, TaskResult), outcome.traceback
    return outcome


def values(result, quantity, replica=0):
    return result.arrays[f"replica_{replica}/{quantity}"].value


def end_of(result, replica=0):
    position, velocity = (values(result, f"state/{q}", replica)[-1] for q in ("position", "velocity"))
    return State(position, velocity, int(values(result, "state/step", replica)[-1]))


@pytest.mark.parametrize("ensemble", ["langevin", "andersen", "nve"])
def test_a_segment_stores_what_the_contract_says(ensemble):
    settings = replace(SETTINGS, ensemble=ensemble, replicas=2, frame_dtype="float32")
    result = result_of([task()], settings)
    atoms = to_ase(make_supercell(argon(), supercell_matrix(argon(), SUPERCELL)))
    for replica in range(2):
        for quantity in ("position", "velocity", "force"):
            stored = values(result, f"particles/all/{quantity}/value", replica)
            assert stored.shape == (FRAMES, 8, 3)
            assert stored.dtype == np.float32
        end = end_of(result, replica)
        assert end.positions_A.dtype == end.velocities_A_fs.dtype == np.float64
        assert end.step == settings.segment_steps == 100
        # The last frame is the state at the end, and its energies belong to it.
        np.testing.assert_allclose(
            values(result, "particles/all/position/value", replica)[-1], end.positions_A, atol=1e-5
        )
        np.testing.assert_allclose(
            values(result, "particles/all/velocity/value", replica)[-1], end.velocities_A_fs, atol=1e-8
        )
        kinetic = 0.5 * (atoms.get_masses()[:, None] * end.velocities_A_fs**2).sum() / 0.00964853321
        assert values(result, "observables/kinetic_energy/value", replica)[-1] == pytest.approx(kinetic, rel=1e-8)
        step = result.arrays[f"replica_{replica}/particles/all/position/step"].value
        np.testing.assert_array_equal(step, np.arange(5, 101, 5))
    scalars = result.scalars
    assert (scalars["replicas"], scalars["frames"], scalars["first_step"], scalars["last_step"]) == (2, FRAMES, 0, 100)
    kinetic = np.concatenate([values(result, "observables/kinetic_energy/value", r) for r in range(2)])
    temperature = 2 * kinetic / (21 * BOLTZMANN_EV_K)
    assert scalars["temperature_K"] == pytest.approx(temperature.mean())
    assert scalars["temperature_std_K"] == pytest.approx(temperature.std())
    assert (result.evaluator, result.dtype) == ("toy", "float64")


def test_replicas_differ_and_the_seed_decides():
    settings = replace(SETTINGS, replicas=2)
    result, again, other = (result_of([task()], settings, seed=seed) for seed in (11, 11, 12))
    first = values(result, "particles/all/position/value", 0)
    assert not np.allclose(first, values(result, "particles/all/position/value", 1), atol=1e-3)
    np.testing.assert_array_equal(first, values(again, "particles/all/position/value", 0))
    assert not np.allclose(first, values(other, "particles/all/position/value", 0), atol=1e-3)


def test_nve_conserves_energy_and_reports_the_drift():
    settings = replace(SETTINGS, ensemble="nve", timestep_fs=2.0)
    result = result_of([task()], settings)
    total = sum(values(result, f"observables/{q}_energy/value") for q in ("potential", "kinetic"))
    assert total.std() < 1e-3 * values(result, "observables/kinetic_energy/value").mean()
    slope = np.polyfit(0.02 * np.arange(1, FRAMES + 1), total, 1)[0]
    assert result.scalars["energy_drift_meV_atom_ps"] == pytest.approx(1e3 * slope / 8, rel=1e-6)


@pytest.mark.parametrize("ensemble", ["langevin", "andersen", "nve"])
def test_a_chain_of_segments_is_the_same_however_it_is_interrupted(ensemble):
    """Whether the next segment starts in the same process from the state, or later and with other batch mates."""
    settings = replace(SETTINGS, ensemble=ensemble, replicas=2)
    first = result_of([task()], settings)
    states = tuple(end_of(first, r) for r in range(2))
    second = result_of([task(segment=1, states=states)], settings)
    mates = [task("A", argon(5.4)), task(segment=1, states=states), task("B", argon(5.2))]
    resumed = next(r for r in run(mates, settings) if r.key.material == "Ar")
    assert second.scalars["first_step"] == 100
    np.testing.assert_array_equal(values(second, "particles/all/position/step"), np.arange(105, 201, 5))
    for replica in range(2):
        for quantity in ("position", "velocity", "force"):
            path = f"particles/all/{quantity}/value"
            np.testing.assert_allclose(
                values(resumed, path, replica), values(second, path, replica), rtol=0, atol=1e-10
            )


def test_the_same_segment_from_the_same_state_is_the_same_bit_for_bit():
    first = result_of([task()])
    again, once_more = (result_of([task(segment=1, states=(end_of(first),))]) for _ in range(2))
    for path, array in again.arrays.items():
        np.testing.assert_array_equal(array.value, once_more.arrays[path].value)


def test_nve_segments_join_without_a_seam():
    """NVE has no noise: two segments are one run of twice the length, bit for bit."""
    settings = replace(SETTINGS, ensemble="nve")
    first = result_of([task()], settings, toys=harmonic())
    second = result_of([task(segment=1, states=(end_of(first),))], settings, toys=harmonic())
    whole = result_of([task()], replace(settings, segment_ps=0.8), toys=harmonic())
    for quantity in ("position", "velocity", "force"):
        path = f"particles/all/{quantity}/value"
        np.testing.assert_array_equal(np.concatenate([values(r, path) for r in (first, second)]), values(whole, path))


def test_batch_mates_change_nothing():
    alone = result_of([task()])
    mates = [task("A", argon(5.4)), task(), task("B", from_ase(bulk("ArNe", "rocksalt", a=7.3)))]
    before, together, after = run(mates)
    assert isinstance(before, TaskResult) and isinstance(after, TaskResult)
    for quantity in ("position", "velocity", "force"):
        path = f"particles/all/{quantity}/value"
        np.testing.assert_allclose(values(together, path), values(alone, path), rtol=0, atol=1e-10)


class Spoiled(LennardJones):
    """Lennard-Jones, but structures that contain neon go wrong from the 30th evaluation on."""

    how = "nan"

    def evaluate(self, batch, neighbors, *, stress=False):
        evaluation = super().evaluate(batch, neighbors, stress=stress)
        if self.evaluations < 30:
            return evaluation
        neon = (batch.numbers == 10)[:, None]
        if self.how == "nan":
            forces = torch.where(neon, torch.nan, evaluation.forces)
        else:
            forces = torch.where(neon, 1e3 * torch.sign(batch.positions - batch.positions.mean()), evaluation.forces)
        return Evaluation(evaluation.energy, forces)


class Heated(Spoiled):
    how = "heat"


@pytest.mark.parametrize(("potential", "reason"), [(Spoiled, "not finite"), (Heated, "temperature")])
def test_an_explosion_is_a_permanent_failure_and_leaves_the_others_alone(potential, reason):
    settings = replace(SETTINGS, replicas=2, min_distance_A=1e-6)
    alone = result_of([task("B", argon(5.3))], settings)
    neon = from_ase(bulk("Ne", "fcc", a=5.35))
    outcomes = run(
        [task("A"), task("bad", neon), task("B", argon(5.3))], settings, ToyEngine(lambda d: potential(dtype=d))
    )
    failure, *results = outcomes
    assert isinstance(failure, TaskFailure)
    assert failure.key.material == "bad"
    assert failure.permanent
    assert failure.exception == "TaskError"
    assert reason in failure.message
    assert "exploded at step 30" in failure.message or "exploded at step 35" in failure.message
    assert [r.key.material for r in results] == ["A", "B"]
    for replica in range(2):
        path = "particles/all/position/value"
        np.testing.assert_allclose(values(results[1], path, replica), values(alone, path, replica), rtol=0, atol=1e-10)


def test_a_collapsed_pair_is_an_explosion():
    """An attractive core draws neighbours together without ever making a force infinite."""

    class Attractive(LennardJones):
        def _pair(self, r):
            return -2.0 * torch.exp(-((r / 3.0) ** 2))

    settings = replace(SETTINGS, max_temperature_factor=1e9, segment_ps=4.0, production_ps=4.0)
    (outcome,) = run([task()], settings, ToyEngine(lambda d: Attractive(dtype=d)))
    assert isinstance(outcome, TaskFailure)
    assert "A apart, less than 0.7 A" in outcome.message
    assert outcome.permanent


def test_nve_starts_with_twice_the_temperature_of_which_equipartition_takes_half():
    settings = replace(SETTINGS, ensemble="nve", replicas=64, segment_ps=2.0, production_ps=2.0)
    result = result_of([task()], settings, toys=harmonic())
    kinetic = np.array([values(result, "observables/kinetic_energy/value", r).mean() for r in range(64)])
    temperatures = 2 * kinetic / (21 * BOLTZMANN_EV_K)
    error = temperatures.std(ddof=1) / np.sqrt(64)
    assert error < 1.0
    assert abs(temperatures.mean() - 20.0) < 4 * error


def test_temperature_is_judged_by_its_average_not_by_a_spike():
    settings = replace(SETTINGS, ensemble="nve")
    kinetic = values(result_of([task()], settings), "observables/kinetic_energy/value")
    temperatures = 2 * kinetic / (21 * BOLTZMANN_EV_K)
    spike = temperatures.max()
    average = np.convolve(temperatures, np.ones(10) / 10, mode="valid").max()
    assert spike > 1.2 * average
    result_of([task()], replace(settings, max_temperature_factor=1.01 * average / 20.0))
    (outcome,) = run([task()], replace(settings, max_temperature_factor=0.99 * average / 20.0))
    assert isinstance(outcome, TaskFailure)
    assert "averaged over 10 frames" in outcome.message


def test_stop_ends_the_stage_without_an_outcome():
    toys = engine()
    asked = []

    def stop():
        asked.append(1)
        return len(asked) >= 4

    assert run([task(), task("B")], stop=stop, toys=toys) == []
    assert toys.evaluators[0].evaluations == 21  # 4 polls, 5 steps apart, and the first forces


def test_bad_inputs_fail_by_name_and_the_others_run():
    collapsed = from_ase(bulk("Ar", "fcc", a=0.4))
    elsewhere = (State(np.zeros((8, 3)), np.zeros((8, 3)), 7),)
    other_size = (State(np.zeros((6, 3)), np.zeros((6, 3)), 100),)
    inputs = [
        task("unknown", from_ase(bulk("Xe", "fcc", a=6.2))),
        task("collapsed", collapsed),
        task("late", segment=1, states=elsewhere),
        task("small", segment=1, states=other_size),
        task("stateless", segment=1),
        task("two", segment=1, states=elsewhere * 2),
        task("good"),
    ]
    outcomes = {o.key.material: o for o in run(inputs)}
    assert "does not know Xe" in outcomes["unknown"].message
    assert "volume" in outcomes["collapsed"].message
    assert "8 atoms at step 7" in outcomes["late"].message
    assert "6 atoms at step 100" in outcomes["small"].message
    assert "starts from nothing" in outcomes["stateless"].message
    assert "2 states for 1 replicas" in outcomes["two"].message
    assert isinstance(outcomes["good"], TaskResult)
    assert all(o.permanent for o in outcomes.values() if isinstance(o, TaskFailure))


def test_one_atom_cannot_move():
    (outcome,) = dynamics([task()], MODEL, engine(), SupercellSettings(matrix=(1, 1, 1)), SETTINGS, seed=1)
    assert "one atom" in outcome.message


@pytest.mark.parametrize(
    ("ensemble", "parameters"), [("langevin", {"friction_per_ps": 10.0}), ("andersen", {"collision_probability": 0.1})]
)
def test_a_harmonic_crystal_has_the_canonical_potential_energy(ensemble, parameters):
    """Through the whole stage, float32 forces and all: (3n - 3) kT / 2, averaged over 24 replicas."""
    settings = replace(
        SETTINGS,
        ensemble=ensemble,
        replicas=24,
        dtype="float32",
        temperature_K=300.0,
        segment_ps=6.0,
        production_ps=6.0,
        timestep_fs=2.0,
        **parameters,
    )
    result = result_of([task()], settings, toys=harmonic())
    kept = slice(50, None)
    potentials = np.array([values(result, "observables/potential_energy/value", r)[kept].mean() for r in range(24)])
    exact = 0.5 * 21 * BOLTZMANN_EV_K * 300.0
    error = potentials.std(ddof=1) / np.sqrt(24)
    assert error < 0.02 * exact
    assert abs(potentials.mean() - exact) < 4 * error
