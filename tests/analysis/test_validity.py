from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from ase import Atoms, units

from analysis.stability import anharmonic_label, harmonic_label
from analysis.validity import EV_PER_U_A2_FS2, RunRecord, ValiditySettings, judge, kinetic_temperatures


def run(frames=500, temperature=300.0, slope=0.0, site_factor=1.0, drift=0.0, atoms=80, seed=0):
    """A made-up canonical run: the temperature of N atoms fluctuates by T sqrt(2 / 3N)."""
    rng = np.random.default_rng(seed)
    time = 10.0 * np.arange(1, frames + 1)
    level = temperature * (1 + slope * (time / time[-1] - 0.5))
    fluctuation = np.sqrt(2 / (3 * atoms))
    return RunRecord(
        time_fs=time,
        temperature_K=level * (1 + fluctuation * rng.standard_normal(frames)),
        site_temperature_K={
            "Cs": level * (1 + 2 * fluctuation * rng.standard_normal(frames)),
            "Br": site_factor * level * (1 + 2 * fluctuation * rng.standard_normal(frames)),
        },
        energy_eV_atom=-3.0 + drift * time / 1e6 + 1e-5 * rng.standard_normal(frames),
    )


def test_a_good_run_is_valid():
    verdict = judge([run(), run(seed=1)], 300.0, "langevin")
    assert verdict.valid
    assert verdict.production_ps == pytest.approx(10.0)
    assert verdict.temperature_K == pytest.approx(300.0, abs=2.0)
    assert 0 < verdict.temperature_error.error < 2.0


@pytest.mark.parametrize(
    ("change", "ensemble", "word"),
    [
        ({"temperature": 340.0}, "langevin", "asked for 300 K"),
        ({"slope": 0.5}, "langevin", "not steady"),
        ({"site_factor": 1.4}, "langevin", "no equipartition: Br"),
        ({"drift": 5.0}, "nve", "energy drifts by 5.00 meV/atom/ps"),
        ({"frames": 50}, "langevin", "production of 0.50 ps is shorter than 1 ps"),
        ({"temperature": np.nan}, "langevin", "mean temperature nan K"),
    ],
)
def test_each_fault_is_named(change, ensemble, word):
    verdict = judge([run(**change)], 300.0, ensemble)
    assert not verdict.valid
    assert any(word in reason for reason in verdict.reasons), verdict.reasons


def test_energy_of_a_thermostatted_run_may_drift():
    assert judge([run(drift=5.0)], 300.0, "langevin").valid


def test_no_frames():
    assert judge([], 300.0, "langevin").reasons == ("no frames after equilibration",)


def test_noise_of_a_short_run_is_forgiven():
    """20 atoms, 10 frames: the mean is uncertain by more than the tolerance, which is no fault of the run."""
    settings = ValiditySettings(min_production_ps=0.1)
    verdicts = [judge([run(frames=10, atoms=20, seed=seed)], 300.0, "langevin", settings) for seed in range(20)]
    assert sum(verdict.valid for verdict in verdicts) >= 18


def test_kinetic_temperature_of_a_maxwell_boltzmann_gas():
    """With zero total momentum; few atoms, so that degrees of freedom count, and unlike masses, so that it shows."""
    rng = np.random.default_rng(0)
    masses = np.repeat([20.0, 200.0], 4)
    speed = np.sqrt(units.kB * 300.0 / (masses * EV_PER_U_A2_FS2))
    velocities = rng.standard_normal((20000, 8, 3)) * speed[:, None]
    velocities -= np.einsum("tni,n->ti", velocities, masses / masses.sum())[:, None]
    temperature, by_site = kinetic_temperatures(velocities, masses, ["a"] * 4 + ["b"] * 4)
    assert temperature.mean() == pytest.approx(300.0, rel=0.005)
    assert temperature.std() == pytest.approx(300.0 * np.sqrt(2 / 21), rel=0.05)
    assert by_site["a"].mean() == pytest.approx(300.0, rel=0.01)
    assert by_site["b"].mean() == pytest.approx(300.0, rel=0.01)


def test_ase_agrees_on_units(stable_crystal):
    supercell = stable_crystal.constants.supercell
    velocities = 1e-3 * np.random.default_rng(0).standard_normal((1, 80, 3))
    atoms = Atoms(numbers=supercell.numbers, positions=supercell.positions, cell=supercell.cell, pbc=True)
    atoms.set_velocities(velocities[0] / units.fs)
    temperature, _ = kinetic_temperatures(velocities, atoms.get_masses(), ["x"] * 80)
    assert temperature[0] * 237 / 240 == pytest.approx(atoms.get_temperature(), rel=1e-6)


def test_labels(stable_crystal, unstable_crystal):
    from analysis.anharmonic import BlockError, Sigma
    from analysis.harmonic import build_phonopy, commensurate_modes, mesh_modes

    for crystal, stable in ((stable_crystal, True), (unstable_crystal, False)):
        phonon = build_phonopy(crystal.constants)
        assert harmonic_label(commensurate_modes(phonon), mesh_modes(phonon, 20.0), -0.1).stable is stable
    assert harmonic_label(None, None, -0.1).stable is None
    good = judge([run()], 300.0, "langevin")
    calm = Sigma(0.4, BlockError(0.01, 8, True), 0.41, {}, 100)
    wild = dataclasses.replace(calm, pooled=1.2)
    assert anharmonic_label(calm, good, 300.0).stable is True
    assert anharmonic_label(wild, good, 300.0).stable is False
    assert anharmonic_label(wild, judge([run(temperature=900.0)], 300.0, "langevin"), 300.0).stable is None
    assert anharmonic_label(wild, good, 600.0).stable is None
    assert anharmonic_label(None, None, 300.0).text == "undecided"
    assert anharmonic_label(dataclasses.replace(calm, pooled=float("nan")), good, 300.0).stable is None
