from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from ase import units
from phonopy.physical_units import get_physical_units

from analysis.harmonic import (
    PhononError,
    bands,
    build_phonopy,
    commensurate_modes,
    density_of_states,
    mesh_modes,
    thermal_properties,
)
from driver.archive.records import Structure

THZ = get_physical_units().DefaultToTHz
"""sqrt(eV / u) / angstrom in THz."""


def dense_frequencies(springs) -> np.ndarray:
    """All 3N frequencies of the supercell in THz, straight from the dynamical matrix, ascending."""
    mass = np.repeat(springs.constants.masses_u, 3)
    eigenvalues = np.linalg.eigvalsh(springs.matrix / np.sqrt(np.outer(mass, mass)))
    return np.sign(eigenvalues) * np.sqrt(np.abs(eigenvalues)) * THZ


@pytest.mark.parametrize("name", ["stable_crystal", "unstable_crystal"])
def test_commensurate_points_hold_the_spectrum_of_the_supercell(name, request):
    crystal = request.getfixturevalue(name)
    modes = commensurate_modes(build_phonopy(crystal.constants))
    assert modes.frequencies_THz.shape == (8, 30)
    exact = dense_frequencies(crystal)
    away_from_zero = np.abs(exact) > 1e-3
    np.testing.assert_allclose(np.sort(modes.frequencies_THz.ravel())[away_from_zero], exact[away_from_zero], atol=1e-8)
    assert modes.translation_THz < 1e-4
    assert (~modes.vibration).sum() == 3


def test_minimum_is_signed_and_leaves_out_translations(stable_crystal, unstable_crystal):
    stable = commensurate_modes(build_phonopy(stable_crystal.constants))
    assert stable.minimum_THz == pytest.approx(dense_frequencies(stable_crystal)[3], abs=1e-8)
    assert stable.imaginary(-0.1) == (0, 0.0)
    exact = dense_frequencies(unstable_crystal)
    unstable = commensurate_modes(build_phonopy(unstable_crystal.constants))
    assert unstable.minimum_THz == pytest.approx(exact[0], abs=1e-8)
    count, fraction = unstable.imaginary(-0.1)
    assert count == (exact < -0.1).sum() > 0
    assert fraction == pytest.approx(count / (len(exact) - 3))


def test_soft_mode_nearer_to_zero_than_a_shifted_translation_is_kept(stable_crystal):
    """The sum rule broken on purpose: the translations at Gamma move, and must still be told from vibrations."""
    constants = stable_crystal.constants
    values = constants.values.copy()
    values[np.arange(10), build_phonopy(constants).primitive.p2s_map] += 0.3 * np.eye(3)
    broken = commensurate_modes(build_phonopy(dataclasses.replace(constants, values=values)))
    assert broken.translation_THz > 0.1
    assert (~broken.vibration[1:]).sum() == 0


def test_mesh_holds_zone_boundary_and_counts_all_points(stable_crystal):
    phonon = build_phonopy(stable_crystal.constants)
    modes = mesh_modes(phonon, 60.0)
    assert modes.weights.sum() == 10**3
    commensurate = commensurate_modes(phonon)
    assert modes.minimum_THz <= commensurate.minimum_THz + 1e-9
    halves = np.isclose(np.abs(modes.qpoints), 0.5).sum(axis=1)
    (at_x,) = np.flatnonzero((halves == 2) & np.isclose(modes.qpoints, 0.0).any(axis=1))
    np.testing.assert_allclose(modes.frequencies_THz[at_x], commensurate.frequencies_THz[3], atol=1e-9)


def test_worst_q_is_where_the_minimum_is(unstable_crystal):
    phonon = build_phonopy(unstable_crystal.constants)
    modes = mesh_modes(phonon, 40.0)
    lowest = phonon.run_qpoints([modes.worst_q]).frequencies.min()
    assert lowest == pytest.approx(modes.minimum_THz, abs=1e-9)


def test_density_of_states_integrates_to_the_number_of_modes(stable_crystal):
    phonon = build_phonopy(stable_crystal.constants)
    mesh_modes(phonon, 60.0)
    dos = density_of_states(phonon)
    assert np.trapezoid(dos.states_per_THz, dos.frequencies_THz) == pytest.approx(30.0, rel=0.01)


def test_thermal_properties_against_the_sum_over_modes(stable_crystal):
    phonon = build_phonopy(stable_crystal.constants)
    modes = mesh_modes(phonon, 40.0)
    found = thermal_properties(phonon, 300.0)
    weights = np.broadcast_to(modes.weights[:, None], modes.vibration.shape)[modes.vibration] / modes.weights.sum()
    x = modes.frequencies_THz[modes.vibration] * 1e12 * units._hplanck / (units._k * 300.0)
    gas = units._k * units._Nav
    assert found.heat_capacity_J_K_mol == pytest.approx(
        (weights * gas * x**2 * np.exp(x) / np.expm1(x) ** 2).sum(), rel=1e-5
    )
    entropy = (weights * gas * (x / np.expm1(x) - np.log1p(-np.exp(-x)))).sum()
    assert found.entropy_J_K_mol == pytest.approx(entropy, rel=1e-5)
    free_energy = (weights * gas * 300.0 * (x / 2 + np.log1p(-np.exp(-x)))).sum() / 1000
    assert found.free_energy_kJ_mol == pytest.approx(free_energy, rel=1e-5)


def test_bands_of_fcc(stable_crystal):
    result = bands(build_phonopy(stable_crystal.constants), points=60)
    assert [label for _, label in result.ticks][:4] == ["Γ", "X", "W", "K"]
    assert any("|" in label for _, label in result.ticks)
    # Gamma to X of an fcc lattice is 1 / a.
    assert result.ticks[1][0] == pytest.approx(1 / 11.2)
    at_x = result.frequencies_THz[0][-1]
    commensurate = commensurate_modes(build_phonopy(stable_crystal.constants)).frequencies_THz
    assert np.abs(commensurate - at_x).max(axis=1).min() < 1e-9


def test_monatomic_chain_dispersion_in_closed_form():
    """fcc with nearest-neighbour springs: at X the longitudinal branch has w^2 = 8 k / m, the transverse 4 k / m."""
    from phonopy import Phonopy

    from analysis.harmonic import ForceConstants
    from driver.structures.convert import from_phonopy, to_phonopy

    a, k = 4.0, 1.7
    cell = a * np.array([[0.0, 0.5, 0.5], [0.5, 0.0, 0.5], [0.5, 0.5, 0.0]])
    unitcell = Structure(np.array([13]), np.zeros((1, 3)), cell)
    phonon = Phonopy(to_phonopy(unitcell), 4 * np.eye(3, dtype=int), primitive_matrix=np.eye(3))
    supercell = from_phonopy(phonon.supercell)
    vectors = supercell.positions - supercell.positions[0]
    fractional = vectors @ np.linalg.inv(supercell.cell)
    vectors = (fractional - np.rint(fractional)) @ supercell.cell
    distance = np.linalg.norm(vectors, axis=1)
    values = np.zeros((1, len(supercell), 3, 3))
    for index in np.flatnonzero(np.abs(distance - a / np.sqrt(2)) < 1e-6):
        unit = vectors[index] / distance[index]
        values[0, index] = -k * np.outer(unit, unit)
    values[0, 0] = -values[0].sum(axis=0)
    masses = np.full(len(supercell), 27.0)
    constants = ForceConstants(unitcell, supercell, masses, 4 * np.eye(3, dtype=np.int64), np.eye(3), values)
    at_x = build_phonopy(constants).run_qpoints([[0.5, 0.5, 0.0]]).frequencies[0]
    np.testing.assert_allclose(at_x, np.sqrt(np.array([4, 4, 8]) * k / 27.0) * THZ, rtol=1e-10)


def test_another_supercell_is_refused(stable_crystal):
    constants = stable_crystal.constants
    supercell = constants.supercell
    swapped = Structure(supercell.numbers, supercell.positions[::-1].copy(), supercell.cell)
    with pytest.raises(PhononError, match="deviates"):
        build_phonopy(dataclasses.replace(constants, supercell=swapped))
    with pytest.raises(PhononError, match="shape"):
        build_phonopy(dataclasses.replace(constants, values=constants.values[:3]))
    with pytest.raises(PhononError, match="finite"):
        build_phonopy(dataclasses.replace(constants, values=constants.values * np.nan))
