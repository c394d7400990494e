"""Sampling is tested on many independent copies: their spread gives the standard error that a mean is judged by."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from ase import units
from scipy import stats
from toy_potentials import HarmonicCrystal, QuarticDimers

from driver.engine.batch import StructureBatch
from driver.engine.integrators import Andersen, Langevin, VelocityVerlet
from driver.engine.neighbors import NeighborList
from driver.engine.noise import Noise, StreamIdentity
from driver.engine.state import (
    ACCELERATION,
    BOLTZMANN_EV_K,
    Particles,
    PhaseState,
    degrees_of_freedom,
    maxwell_boltzmann_velocities,
)

TEMPERATURE_K = 300.0
KT_EV = BOLTZMANN_EV_K * TEMPERATURE_K


def start(potential, references, masses, temperature_K=TEMPERATURE_K, velocities=None):
    """Return a state at the reference positions with thermal velocities, and its force field."""
    batch = StructureBatch(
        positions=torch.as_tensor(np.concatenate(references), dtype=potential.dtype),
        cells=torch.eye(3, dtype=potential.dtype).repeat(len(references), 1, 1) * 50.0,
        numbers=torch.ones(sum(map(len, references)), dtype=torch.int64),
        system=torch.repeat_interleave(torch.arange(len(references)), torch.tensor([len(r) for r in references])),
        counts=tuple(len(r) for r in references),
    )
    neighbors = NeighborList(potential.cutoff_A)

    def force_field(positions):
        return potential.evaluate(batch.moved(positions.to(potential.dtype)), neighbors)

    if velocities is None:
        velocities = [
            maxwell_boltzmann_velocities(m, temperature_K, StreamIdentity(1, str(i), "toy", 0, 0).generator("v"))
            for i, m in enumerate(masses)
        ]
    positions = batch.positions.double()
    evaluation = force_field(positions)
    state = PhaseState(
        particles=Particles.from_masses(masses),
        positions=positions,
        velocities=torch.as_tensor(np.concatenate(velocities)),
        forces=evaluation.forces.double(),
        energies=evaluation.energy,
    )
    return state, force_field


def run(integrator, state, force_field, steps, *, every=0, look=None, seed=5):
    """Advance by `steps`; return what `look` says of every `every`-th state, stacked."""
    identities = [StreamIdentity(seed, str(i), "toy", 0, 0) for i in range(len(state.particles.counts))]
    noise = Noise(identities, state.particles.counts, integrator.quantities)
    seen = []
    for step in range(1, steps + 1):
        state = integrator.step(state, noise.draw(), force_field)
        if every and step % every == 0:
            seen.append(look(state))
    return state, seen


def springs(n=6, seed=3):
    """Return sites, force constants and masses of n atoms joined by isotropic springs: translations cost nothing."""
    generator = np.random.default_rng(seed)
    couplings = np.triu(generator.uniform(1.0, 3.0, (n, n)), 1)
    couplings += couplings.T
    laplacian = np.diag(couplings.sum(axis=1)) - couplings
    return generator.uniform(0, 8, (n, 3)), np.kron(laplacian, np.eye(3)), generator.uniform(20.0, 130.0, n)


def assert_mean(samples, exact, *, sigmas=4.0, precision):
    """Compare a mean over independent copies (axis 0) with its exact value; its error must be small enough to tell."""
    samples = np.asarray(samples)
    error = samples.std(axis=0, ddof=1) / math.sqrt(len(samples))
    assert np.all(error < precision * np.abs(exact)), f"standard errors up to {error.max()}: the test says nothing"
    deviation = (samples.mean(axis=0) - exact) / error
    assert np.all(np.abs(deviation) < sigmas), f"off by {deviation} standard errors"


def test_units():
    assert pytest.approx(0.00964853, rel=1e-5) == ACCELERATION
    # A kinetic energy in ASE's units is the same energy.
    velocity_A_fs = 0.01
    state = PhaseState(
        Particles.from_masses([np.array([40.0])]),
        torch.zeros(1, 3),
        torch.tensor([[velocity_A_fs, 0, 0]], dtype=torch.float64),
        torch.zeros(1, 3),
        torch.zeros(1, dtype=torch.float64),
    )
    in_ase = 0.5 * 40.0 * (velocity_A_fs / units.fs) ** 2
    assert state.kinetic_energies().item() == pytest.approx(in_ase, rel=1e-14)


def test_a_harmonic_dimer_oscillates_at_the_frequency_of_velocity_verlet():
    """Whose angular frequency W at a finite time step dt obeys sin(W dt / 2) = w dt / 2."""
    k, masses, steps = 2.0, np.array([30.0, 70.0]), 40
    angular = math.sqrt(k * ACCELERATION * masses.sum() / masses.prod())
    timestep_fs = 2.0 * math.sin(math.pi / steps) / angular
    sites = np.array([[0.0, 0, 0], [3.0, 0, 0]])
    phi = np.kron(np.array([[k, -k], [-k, k]]), np.eye(3))
    speeds = np.array([[0.01, 0, 0], [-0.01 * 30 / 70, 0, 0]])
    state, field = start(HarmonicCrystal({2: (sites, phi)}), [sites], [masses], velocities=[speeds])
    half, _ = run(VelocityVerlet(timestep_fs), state, field, steps // 2)
    end, _ = run(VelocityVerlet(timestep_fs), state, field, steps)
    np.testing.assert_allclose(half.velocities, -speeds, atol=1e-14)
    np.testing.assert_allclose(end.positions, sites, atol=1e-12)
    np.testing.assert_allclose(end.velocities, speeds, atol=1e-14)


@pytest.mark.parametrize("kind", ["harmonic", "quartic"])
def test_nve_conserves_energy_to_second_order(kind):
    if kind == "harmonic":
        sites, phi, masses = springs()
        potential = HarmonicCrystal({len(sites): (sites, phi)})
    else:
        sites, masses = np.array([[0.0, 0, 0], [2.0, 0, 0]]), np.array([30.0, 50.0])
        potential = QuarticDimers(20.0)
    fluctuation = []
    for timestep_fs in (4.0, 2.0, 1.0):
        state, field = start(potential, [sites], [masses], temperature_K=600.0)
        steps = round(2000 / timestep_fs)
        _, energies = run(
            VelocityVerlet(timestep_fs),
            state,
            field,
            steps,
            every=1,
            look=lambda s: (s.energies + s.kinetic_energies()).item(),
        )
        fluctuation.append(np.std(energies))
        # No drift: the last tenth has the mean of the first.
        tenth = len(energies) // 10
        assert abs(np.mean(energies[-tenth:]) - np.mean(energies[:tenth])) < 2 * fluctuation[-1]
    assert fluctuation[0] / fluctuation[1] == pytest.approx(4.0, rel=0.15)
    assert fluctuation[1] / fluctuation[2] == pytest.approx(4.0, rel=0.1)


@pytest.mark.parametrize(
    "integrator",
    [Langevin(1.0, TEMPERATURE_K, friction_per_ps=20.0), Andersen(1.0, TEMPERATURE_K, collision_probability=0.03)],
    ids=["langevin", "andersen"],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_canonical_averages_of_a_harmonic_crystal(integrator, dtype):
    """Equipartition over 3n - 3 degrees of freedom, fluctuations, and the covariance kT A phi^+ A^T of positions."""
    sites, phi, masses = springs()
    n, copies = len(sites), 200
    dof = degrees_of_freedom(n)
    potential = HarmonicCrystal({n: (sites, phi)}, dtype)
    state, field = start(potential, [sites] * copies, [masses] * copies)
    state, _ = run(integrator, state, field, 500)
    seen = []

    def look(s):
        u = s.positions.reshape(copies, n, 3) - torch.as_tensor(sites)
        return s.temperatures().numpy(), s.energies.numpy(), u.square().mean(dim=2).numpy()

    state, seen = run(integrator, state, field, 2500, every=10, look=look, seed=6)
    temperatures, energies, squares = (np.stack(x) for x in zip(*seen, strict=True))
    assert_mean(temperatures.mean(axis=0), TEMPERATURE_K, precision=0.01)
    assert_mean(energies.mean(axis=0), 0.5 * dof * KT_EV, precision=0.01)
    variances = ((temperatures - TEMPERATURE_K) ** 2).mean(axis=0)
    assert_mean(variances, 2 * TEMPERATURE_K**2 / dof, precision=0.02)
    from_com = np.eye(n) - np.outer(np.ones(n), masses / masses.sum())
    exact = KT_EV * np.diag(from_com @ np.linalg.pinv(phi[::3, ::3]) @ from_com.T)
    assert_mean(squares.mean(axis=0), exact, precision=0.03)
    drift_A_fs = state.particles.com_velocities(state.velocities).abs().max()
    assert drift_A_fs < (1e-15 if dtype == torch.float64 else 1e-9)


@pytest.mark.parametrize("ensemble", ["langevin", "andersen"])
def test_velocities_are_maxwell_boltzmann(ensemble):
    """One velocity component per copy (independent); with the momentum fixed its variance is kT / m (1 - m / M)."""
    sites, phi, masses = springs()
    copies = 1500
    state, field = start(
        HarmonicCrystal({len(sites): (sites, phi)}), [sites] * copies, [masses] * copies, temperature_K=0.0
    )
    integrator = {
        "langevin": Langevin(1.0, TEMPERATURE_K, friction_per_ps=50.0),
        "andersen": Andersen(1.0, TEMPERATURE_K, collision_probability=0.3),
    }[ensemble]
    end, _ = run(integrator, state, field, 300)
    velocities = end.velocities.numpy().reshape(copies, len(sites), 3)
    for atom, mass in enumerate(masses):
        width = math.sqrt(KT_EV * ACCELERATION / mass * (1 - mass / masses.sum()))
        assert stats.kstest(velocities[:, atom].ravel() / width, "norm").pvalue > 1e-4


def test_baoab_samples_positions_of_a_harmonic_oscillator_exactly_at_a_large_time_step():
    """And its kinetic energy low by (w dt)^2 / 4 (Leimkuhler and Matthews 2013)."""
    k, masses, copies = 2.0, np.array([30.0, 70.0]), 600
    angular = math.sqrt(k * ACCELERATION * masses.sum() / masses.prod())
    timestep_fs = 0.6 / angular
    sites = np.array([[0.0, 0, 0], [3.0, 0, 0]])
    phi = np.kron(np.array([[k, -k], [-k, k]]), np.eye(3))
    state, field = start(HarmonicCrystal({2: (sites, phi)}), [sites] * copies, [masses] * copies)
    integrator = Langevin(timestep_fs, TEMPERATURE_K, friction_per_ps=500.0 / timestep_fs)
    state, _ = run(integrator, state, field, 200)
    _, seen = run(
        integrator,
        state,
        field,
        4000,
        every=2,
        look=lambda s: (s.energies.numpy(), s.kinetic_energies().numpy()),
        seed=9,
    )
    potential, kinetic = (np.stack(x).mean(axis=0) for x in zip(*seen, strict=True))
    assert_mean(potential, 1.5 * KT_EV, precision=0.004)
    assert_mean(kinetic, 1.5 * KT_EV * (1 - 0.6**2 / 4), precision=0.004)


@pytest.mark.parametrize("ensemble", ["langevin", "andersen"])
def test_a_quartic_oscillator_is_sampled_canonically(ensemble):
    """<q x^4> = kT per component (virial), <x^2> = 2 sqrt(kT / q) Gamma(3/4) / Gamma(1/4)."""
    q, masses, copies = 20.0, np.array([30.0, 50.0]), 400
    sites = np.array([[0.0, 0, 0], [2.0, 0, 0]])
    state, field = start(QuarticDimers(q), [sites] * copies, [masses] * copies)
    integrator = {
        "langevin": Langevin(2.0, TEMPERATURE_K, friction_per_ps=10.0),
        "andersen": Andersen(2.0, TEMPERATURE_K, collision_probability=0.02),
    }[ensemble]
    state, _ = run(integrator, state, field, 500)

    def look(s):
        pairs = s.positions.reshape(copies, 2, 3)
        return (pairs[:, 1] - pairs[:, 0] - torch.tensor([2.0, 0.0, 0.0])).numpy()

    _, seen = run(integrator, state, field, 4000, every=10, look=look, seed=8)
    x = np.stack(seen)
    second = 2 * math.sqrt(KT_EV / q) * math.gamma(0.75) / math.gamma(0.25)
    assert_mean((x**2).mean(axis=(0, 2)), second, precision=0.01)
    assert_mean((q * x**4).mean(axis=(0, 2)), KT_EV, precision=0.01)


@pytest.mark.parametrize("integrator", [Langevin(1.0, 300.0, 10.0), Andersen(1.0, 300.0, 0.2), VelocityVerlet(1.0)])
def test_a_trajectory_does_not_depend_on_its_batch_mates(integrator):
    small, large = springs(4, seed=1), springs(7, seed=2)
    potential = HarmonicCrystal({4: small[:2], 7: large[:2]})
    identities = [StreamIdentity(5, name, "toy", 0, 0) for name in ("left", "ours", "right")]
    crystals = [large, small, large]

    def trajectory(members):
        masses = [crystals[i][2] for i in members]
        velocities = [
            maxwell_boltzmann_velocities(crystals[i][2], 300.0, identities[i].generator("velocities")) for i in members
        ]
        state, field = start(potential, [crystals[i][0] for i in members], masses, velocities=velocities)
        noise = Noise([identities[i] for i in members], state.particles.counts, integrator.quantities)
        for _ in range(200):
            state = integrator.step(state, noise.draw(), field)
        return state.select([members.index(1)])

    alone, together = trajectory([1]), trajectory([0, 1, 2])
    torch.testing.assert_close(together.positions, alone.positions, rtol=0, atol=1e-13)
    torch.testing.assert_close(together.velocities, alone.velocities, rtol=0, atol=1e-14)


def test_initial_velocities_have_no_momentum_and_the_right_temperature():
    masses = np.array([7.0, 35.0, 133.0, 209.0])
    generator = StreamIdentity(1, "m", "toy", 0, 0).generator("velocities")
    draws = np.stack([maxwell_boltzmann_velocities(masses, 450.0, generator) for _ in range(4000)])
    assert np.abs(np.einsum("a,dax->dx", masses, draws)).max() < 1e-13 * masses.sum()
    kinetic = 0.5 * (masses[None, :, None] * draws**2).sum(axis=(1, 2)) / ACCELERATION
    temperatures = 2 * kinetic / (degrees_of_freedom(4) * BOLTZMANN_EV_K)
    assert_mean(temperatures, 450.0, precision=0.01)
    assert_mean((temperatures - 450.0) ** 2, 2 * 450.0**2 / degrees_of_freedom(4), precision=0.05)


def test_the_noise_of_an_ensemble_that_keeps_momentum_does_not_grow_in_float32():
    """Float32 forces need not add up to zero; the centre of mass must stay where it is all the same."""
    sites, phi, masses = springs()
    state, field = start(HarmonicCrystal({len(sites): (sites, phi)}, torch.float32), [sites], [masses])
    end, _ = run(Langevin(2.0, TEMPERATURE_K, 10.0), state, field, 5000)
    weights = masses / masses.sum()
    assert np.abs(weights @ (end.positions.numpy() - sites)).max() < 1e-5
