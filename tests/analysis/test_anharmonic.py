from __future__ import annotations

import numpy as np
import pytest
from scipy import integrate

from analysis.anharmonic import (
    block_error,
    displacements,
    force_moments,
    harmonic_forces,
    running_sigma,
    sigma,
)
from analysis.harmonic import build_phonopy, full_force_constants


def test_full_matrix_is_that_of_the_crystal(stable_crystal):
    matrix = full_force_constants(build_phonopy(stable_crystal.constants))
    np.testing.assert_allclose(matrix, stable_crystal.matrix, atol=1e-12)


def test_harmonic_crystal_has_sigma_zero(stable_crystal):
    """Through everything: compact force constants, unwrapped drifting positions, minimum image, moments."""
    constants = stable_crystal.constants
    cell, reference = constants.supercell.cell, constants.supercell.positions
    u = stable_crystal.sample(300.0, frames=50)
    forces = -(u.reshape(50, -1) @ stable_crystal.matrix.T).reshape(u.shape)
    drift = np.linspace(0.0, 17.0, 50)[:, None, None] * np.array([1.0, -0.3, 0.2])
    lattice_hops = np.random.default_rng(1).integers(-1, 2, (50, len(reference), 3)) @ cell
    recovered = displacements(reference + u + drift + lattice_hops, reference, cell, constants.masses_u)
    phi = full_force_constants(build_phonopy(constants))
    moments = force_moments(forces, harmonic_forces(recovered, phi), ["any"] * len(reference))
    assert sigma([moments]).pooled < 1e-6
    assert sigma([moments]).frame_mean < 1e-6


def test_displacements_have_no_drift_and_keep_the_rest(stable_crystal):
    supercell, masses = stable_crystal.constants.supercell, stable_crystal.constants.masses_u
    u = stable_crystal.sample(300.0, frames=4)
    u -= np.einsum("tni,n->ti", u, masses / masses.sum())[:, None]
    np.testing.assert_allclose(
        displacements(supercell.positions + u + 3.3, supercell.positions, supercell.cell, masses), u, atol=1e-12
    )


class Quartic:
    """Einstein oscillators in V = k x^2 / 2 + g x^4 / 4, one per Cartesian component.

    F = -k x - g x^3 and FA = -g x^3, so with moments m_n = <x^n> of exp(-V / kT)
    sigma^2 = g^2 m_6 / (k^2 m_2 + 2 k g m_4 + g^2 m_6).
    """

    def __init__(self, k: float, g: float, kt: float) -> None:
        self.k, self.g, self.kt = k, g, kt
        self.width = 8.0 * np.sqrt(kt / k)

    def weight(self, x):
        return np.exp(-(self.k * x**2 / 2 + self.g * x**4 / 4) / self.kt)

    def sigma(self) -> float:
        norm, _ = integrate.quad(self.weight, -self.width, self.width)
        m2, m4, m6 = (
            integrate.quad(lambda x, n=n: x**n * self.weight(x), -self.width, self.width)[0] / norm for n in (2, 4, 6)
        )
        return float(np.sqrt(self.g**2 * m6 / (self.k**2 * m2 + 2 * self.k * self.g * m4 + self.g**2 * m6)))

    def sample(self, shape: tuple[int, ...]) -> np.ndarray:
        grid = np.linspace(-self.width, self.width, 20001)
        cumulative = integrate.cumulative_trapezoid(self.weight(grid), grid, initial=0.0)
        return np.interp(np.random.default_rng(7).random(shape), cumulative / cumulative[-1], grid)


@pytest.mark.parametrize("g", [0.3, 3.0, 60.0])
def test_quartic_oscillator_against_closed_form(g):
    oscillator = Quartic(k=1.0, g=g, kt=0.0259)
    u = oscillator.sample((4000, 40, 3))
    forces = -oscillator.k * u - g * u**3
    moments = force_moments(forces, harmonic_forces(u, oscillator.k * np.eye(120)), ["X"] * 40)
    result = sigma([moments])
    assert result.pooled == pytest.approx(oscillator.sigma(), rel=0.01)
    assert abs(result.pooled - oscillator.sigma()) < 4 * result.error.error


def test_quartic_oscillator_sampled_by_dynamics():
    """Langevin dynamics (BAOAB) instead of exact draws: correlated frames, so the error must cover the difference."""
    oscillator = Quartic(k=1.0, g=3.0, kt=0.0259)
    rng, step, friction = np.random.default_rng(3), 0.2, 0.2
    x, v = oscillator.sample((240,)), np.sqrt(oscillator.kt) * rng.standard_normal(240)
    keep, kick = np.exp(-friction * step), np.sqrt(oscillator.kt * (1 - np.exp(-2 * friction * step)))
    frames = []
    for index in range(12000):
        v += 0.5 * step * (-oscillator.k * x - oscillator.g * x**3)
        x += 0.5 * step * v
        v = keep * v + kick * rng.standard_normal(240)
        x += 0.5 * step * v
        v += 0.5 * step * (-oscillator.k * x - oscillator.g * x**3)
        if index % 4 == 3:
            frames.append(x.reshape(80, 3).copy())
    u = np.array(frames)
    forces = -oscillator.k * u - oscillator.g * u**3
    result = sigma([force_moments(forces, harmonic_forces(u, oscillator.k * np.eye(240)), ["X"] * 80)])
    assert result.pooled == pytest.approx(oscillator.sigma(), rel=0.01)
    assert result.error.converged
    assert result.error.block_frames > 1


def random_moments(frames: int = 30, seed: int = 0):
    rng = np.random.default_rng(seed)
    forces, anharmonic = rng.standard_normal((frames, 6, 3)), 0.4 * rng.standard_normal((frames, 6, 3))
    forces *= np.linspace(0.5, 2.0, frames)[:, None, None]
    anharmonic += 0.05
    sites = ["Cs", "Br", "Br", "Cs", "Br", "Ag"]
    return forces, anharmonic, sites, force_moments(forces, forces - anharmonic, sites)


def test_variants_are_what_they_say():
    forces, anharmonic, sites, moments = random_moments()
    result = sigma([moments])
    assert result.pooled == pytest.approx(np.std(anharmonic) / np.std(forces), rel=1e-12)
    per_frame = np.std(anharmonic, axis=(1, 2)) / np.std(forces, axis=(1, 2))
    assert result.frame_mean == pytest.approx(per_frame.mean(), rel=1e-12)
    assert result.frame_mean != pytest.approx(result.pooled, rel=1e-3)
    bromine = np.array(sites) == "Br"
    assert result.by_site["Br"] == pytest.approx(np.std(anharmonic[:, bromine]) / np.std(forces[:, bromine]))
    running = running_sigma(moments)
    assert running[-1] == pytest.approx(result.pooled)
    assert running[9] == pytest.approx(np.std(anharmonic[:10]) / np.std(forces[:10]))


def test_replicas_are_pooled():
    one, two = random_moments(30, seed=1), random_moments(50, seed=2)
    anharmonic, forces = np.concatenate([one[1], two[1]]), np.concatenate([one[0], two[0]])
    assert sigma([one[3], two[3]]).pooled == pytest.approx(np.std(anharmonic) / np.std(forces))


def test_no_frames_is_refused():
    with pytest.raises(ValueError, match="no frames"):
        sigma([random_moments(0)[3]])


def correlated(count: int, correlation: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values, noise = np.empty(count), rng.standard_normal(count) * np.sqrt(1 - correlation**2)
    values[0] = rng.standard_normal()
    for index in range(1, count):
        values[index] = correlation * values[index - 1] + noise[index]
    return values


@pytest.mark.parametrize("correlation", [0.0, 0.8])
def test_block_error_of_a_correlated_series(correlation):
    """AR(1): the variance of the mean is (1 + c) / (1 - c) / n."""
    exact = np.sqrt((1 + correlation) / (1 - correlation) / 16000)
    errors = [
        block_error([correlated(8000, correlation, seed), correlated(8000, correlation, seed + 100)])
        for seed in range(8)
    ]
    assert all(error.converged for error in errors)
    assert np.mean([error.error for error in errors]) == pytest.approx(exact, rel=0.15)


def test_block_error_says_when_the_series_is_too_short():
    assert not block_error([correlated(64, 0.99, 0)]).converged
    assert np.isnan(block_error([np.array([1.0])]).error)
    assert block_error([np.ones(10)]).error == 0.0
