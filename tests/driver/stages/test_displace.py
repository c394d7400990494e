from __future__ import annotations

import numpy as np
import phonopy
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from phonopy import Phonopy
from phonopy.harmonic.force_constants import compact_fc_to_full_fc
from toy_potentials import HarmonicCrystal, LennardJones, ToyEngine

from driver.archive.records import Structure, TaskFailure, TaskKey, TaskResult
from driver.engine.calculator import BatchCalculator
from driver.models import ModelFile
from driver.settings import DisplaceSettings, SupercellSettings
from driver.stages.displace import displace, force_constant_asymmetry
from driver.structures.convert import from_ase, to_ase, to_phonopy
from driver.structures.supercells import make_supercell, supercell_matrix
from driver.tasks import TaskInput

MODEL = ModelFile("toy", None, "0" * 64)
KEY = TaskKey("Ar", "toy", "displace")
SUPERCELL = SupercellSettings(matrix=(2, 2, 2))


def argon(a=5.35):
    return from_ase(bulk("Ar", "fcc", a=a))


def wurtzite():
    """A polar crystal with free internal coordinates: residual forces and several symmetry-distinct atoms."""
    return from_ase(bulk("ArNe", "wurtzite", a=4.4, c=7.3, u=0.38))


def engine(**parameters):
    return ToyEngine(lambda dtype: LennardJones(dtype=dtype, **parameters))


def displaced(structure, settings=None, key=KEY):
    (outcome,) = displace([TaskInput(key, structure)], MODEL, engine(), SUPERCELL, settings or DisplaceSettings())
    assert isinstance(outcome, TaskResult), outcome.traceback
    return outcome


def direct(structure, distance=0.01):
    """Phonopy with an ASE calculator, one displaced cell after the other."""
    phonon = Phonopy(to_phonopy(structure), np.diag([2, 2, 2]), primitive_matrix="auto")
    phonon.generate_displacements(distance=distance)
    forces = []
    for cell in [phonon.supercell, *phonon.supercells_with_displacements]:
        atoms = Atoms(numbers=cell.numbers, positions=cell.positions, cell=cell.cell, pbc=True)
        atoms.calc = BatchCalculator(LennardJones())
        forces.append(atoms.get_forces())
    phonon.forces = np.array(forces[1:]) - forces[0]
    phonon.produce_force_constants()
    phonon.symmetrize_force_constants()
    return phonon


QPOINTS = [[0, 0, 0], [0.5, 0, 0], [0.5, 0.5, 0], [0.5, 0.5, 0.5], [0.1, 0.2, 0.3]]


@pytest.mark.parametrize("make", [argon, wurtzite])
def test_frequencies_are_those_of_phonopy_with_an_ase_calculator(make, tmp_path):
    result = displaced(make())
    path = tmp_path / "phonopy_params.yaml"
    path.write_text(result.arrays["d0.0100/phonopy_yaml"].value)
    loaded = phonopy.load(path, log_level=0)
    reference = direct(make())
    for q in QPOINTS:
        np.testing.assert_allclose(loaded.get_frequencies(q), reference.get_frequencies(q), atol=1e-6)
    # and from the arrays alone
    rebuilt = Phonopy(
        to_phonopy(make()),
        result.arrays["supercell_matrix"].value,
        primitive_matrix=result.arrays["primitive_matrix"].value,
    )
    rebuilt.force_constants = result.arrays["d0.0100/force_constants"].value
    for q in QPOINTS:
        np.testing.assert_allclose(rebuilt.get_frequencies(q), reference.get_frequencies(q), atol=1e-6)


def test_forces_for_phonopy_have_neither_residual_nor_drift(tmp_path):
    result = displaced(wurtzite())
    (tmp_path / "phonopy_params.yaml").write_text(result.arrays["d0.0100/phonopy_yaml"].value)
    loaded = phonopy.load(tmp_path / "phonopy_params.yaml", log_level=0)
    expected = result.arrays["d0.0100/forces"].value - result.arrays["residual_forces"].value
    np.testing.assert_allclose(loaded.forces, expected - expected.mean(axis=1, keepdims=True), atol=1e-9)
    assert np.abs(loaded.forces - result.arrays["d0.0100/forces"].value).max() > 1e-3


def test_arrays_have_the_shapes_of_the_contract_and_phonopys_order():
    structure = wurtzite()
    result = displaced(structure)
    value = {path: array.value for path, array in result.arrays.items()}
    perfect = make_supercell(structure, supercell_matrix(structure, SUPERCELL))
    n, d, p = len(perfect), result.scalars["displacements"], len(structure)
    np.testing.assert_allclose(value["supercell/positions"], perfect.positions, atol=1e-12)
    np.testing.assert_array_equal(value["supercell/numbers"], perfect.numbers)
    np.testing.assert_array_equal(value["supercell/cell"], perfect.cell)
    np.testing.assert_allclose(value["supercell/masses"], to_ase(perfect).get_masses())
    assert value["d0.0100/displacements"].shape == value["d0.0100/forces"].shape == (d, n, 3)
    assert value["d0.0100/energies"].shape == (d,)
    assert value["d0.0100/force_constants"].shape == (p, n, 3, 3)
    assert value["d0.0100/p2s_map"].shape == (p,)
    assert value["d0.0100/s2p_map"].shape == (n,)
    np.testing.assert_allclose(np.linalg.norm(value["d0.0100/displacements"], axis=2).max(axis=1), 0.01, atol=1e-12)
    atoms = to_ase(perfect)
    atoms.calc = BatchCalculator(LennardJones())
    np.testing.assert_allclose(value["residual_forces"], atoms.get_forces(), atol=1e-12)
    assert result.scalars["atoms"] == n
    assert result.scalars["max_residual_force_eV_A"] > 1e-3
    assert result.scalars["max_drift_force_eV_A"] < 1e-12
    atoms.positions += value["d0.0100/displacements"][-1]
    np.testing.assert_allclose(value["d0.0100/forces"][-1], atoms.get_forces(), atol=1e-12)
    assert value["d0.0100/energies"][-1] == pytest.approx(atoms.get_potential_energy(), abs=1e-10)


def test_force_constants_of_a_harmonic_crystal_come_back_exactly():
    """phi from the displaced cells is the phi that the potential was made of, in every distance."""
    structure = argon()
    lj = displaced(structure)
    phonon = direct(structure)
    full = compact_fc_to_full_fc(phonon.primitive, lj.arrays["d0.0100/force_constants"].value)
    n = len(full)
    phi = full.transpose(0, 2, 1, 3).reshape(3 * n, 3 * n)
    sites = lj.arrays["supercell/positions"].value
    toy = ToyEngine(lambda dtype: HarmonicCrystal({n: (sites, phi)}, dtype))
    settings = DisplaceSettings(distances_A=(0.01, 0.03))
    (result,) = displace([TaskInput(KEY, structure)], MODEL, toy, SUPERCELL, settings)
    for distance in ("d0.0100", "d0.0300"):
        got = result.arrays[f"{distance}/force_constants"].value
        np.testing.assert_allclose(got, lj.arrays["d0.0100/force_constants"].value, atol=1e-12)
    assert result.scalars["fc_asymmetry_eV_A2"] < 1e-12
    assert result.scalars["max_residual_force_eV_A"] < 1e-12


def test_materials_share_batches_without_changing_each_other():
    structures = [argon(), wurtzite(), argon(5.2)]
    inputs = [TaskInput(TaskKey(f"m{i}", "toy", "displace"), s) for i, s in enumerate(structures)]
    toy = engine()
    together = list(displace(inputs, MODEL, toy, SUPERCELL, DisplaceSettings()))
    assert toy.evaluators[0].evaluations < sum(r.scalars["displacements"] + 1 for r in together)
    for one, result in zip(inputs, together, strict=True):
        single = ToyEngine(lambda dtype: LennardJones(dtype=dtype), capacity_atoms=1)
        (alone,) = displace([one], MODEL, single, SUPERCELL, DisplaceSettings())
        assert alone.key == result.key
        for path, array in alone.arrays.items():
            if isinstance(array.value, np.ndarray):
                np.testing.assert_allclose(array.value, result.arrays[path].value, rtol=0, atol=1e-12)


def test_asymmetry_is_measured_before_symmetrisation():
    raw = displaced(wurtzite(), DisplaceSettings(symmetrize=False))
    symmetrised = displaced(wurtzite())
    assert raw.scalars["fc_asymmetry_eV_A2"] == symmetrised.scalars["fc_asymmetry_eV_A2"] > 1e-9
    assert not np.array_equal(
        raw.arrays["d0.0100/force_constants"].value, symmetrised.arrays["d0.0100/force_constants"].value
    )


def test_asymmetry_of_a_known_matrix():
    phi = np.zeros((2, 2, 3, 3))
    phi[0, 0], phi[1, 1] = np.eye(3), np.eye(3)
    phi[0, 1] = phi[1, 0] = -np.eye(3)
    assert force_constant_asymmetry(phi) == 0.0
    phi[0, 1, 0, 2] = 0.25
    assert force_constant_asymmetry(phi) == 0.25


def test_memory_that_does_not_suffice_makes_smaller_batches():
    class Small(LennardJones):
        largest = 0

        def evaluate(self, batch, neighbors, *, stress=False):
            if batch.size > 2:
                raise torch.OutOfMemoryError("full")
            Small.largest = max(Small.largest, batch.size)
            return super().evaluate(batch, neighbors, stress=stress)

    (result,) = displace(
        [TaskInput(KEY, wurtzite())], MODEL, ToyEngine(lambda d: Small(dtype=d)), SUPERCELL, DisplaceSettings()
    )
    assert Small.largest == 2
    np.testing.assert_allclose(
        result.arrays["d0.0100/forces"].value, displaced(wurtzite()).arrays["d0.0100/forces"].value, atol=1e-12
    )


def test_a_cell_that_does_not_fit_at_all_goes_out():
    class Full(LennardJones):
        def evaluate(self, batch, neighbors, *, stress=False):
            raise torch.OutOfMemoryError("full")

    with pytest.raises(torch.OutOfMemoryError):
        list(displace([TaskInput(KEY, argon())], MODEL, ToyEngine(Full), SUPERCELL, DisplaceSettings()))


def test_a_bad_material_fails_alone():
    overlapping = Structure(np.array([18, 18]), np.zeros((2, 3)), np.eye(3) * 5)
    broken = Structure(np.array([18]), np.full((1, 3), np.nan), np.eye(3) * 5)
    unknown = from_ase(bulk("Xe", "fcc", a=6.2))
    inputs = [
        TaskInput(TaskKey(name, "toy", "displace"), s)
        for name, s in [("overlapping", overlapping), ("broken", broken), ("unknown", unknown), ("good", argon())]
    ]
    toy = ToyEngine(lambda dtype: LennardJones(dtype=dtype), lacking=[54])
    outcomes = {o.key.material: o for o in displace(inputs, MODEL, toy, SUPERCELL, DisplaceSettings())}
    assert {k for k, o in outcomes.items() if isinstance(o, TaskFailure)} == {"overlapping", "broken", "unknown"}
    assert "does not know Xe" in outcomes["unknown"].message
    assert outcomes["good"].arrays["d0.0100/forces"].value == pytest.approx(
        displaced(argon()).arrays["d0.0100/forces"].value, abs=1e-12
    )


def test_displacements_end_between_batches_once_they_are_to_stop():
    tasks = [TaskInput(TaskKey(name, "toy", "displace"), argon()) for name in "ABC"]
    for allowed in (0, 2, 4):
        asked = []

        def stop(asked=asked, allowed=allowed) -> bool:
            asked.append(1)
            return len(asked) > allowed

        assert list(displace(tasks, MODEL, engine(), SUPERCELL, DisplaceSettings(), stop=stop)) == []
    assert len(list(displace(tasks, MODEL, engine(), SUPERCELL, DisplaceSettings(), stop=lambda: False))) == 3
