from __future__ import annotations

import ase.io
import h5py
import MDAnalysis
import numpy as np
import phonopy
import pytest
from MDAnalysis.lib.mdamath import triclinic_box, triclinic_vectors

from analysis.export import export
from analysis.harmonic import build_phonopy, commensurate_modes
from driver.archive.h5md import read_trajectory
from driver.archive.reader import open_archive
from driver.archive.records import ArchiveError
from driver.errors import UsageError

PAIR = ("Cs2NaInCl6", "model-a")


def test_phonopy_reads_what_is_written(toy_archive, stable_crystal, tmp_path, monkeypatch):
    files = export(toy_archive, *PAIR, "phonopy", tmp_path / "out")
    assert [path.name for path in files] == ["phonopy_params.yaml", "FORCE_CONSTANTS"]
    monkeypatch.chdir(tmp_path / "out")
    phonon = phonopy.load("phonopy_params.yaml", force_constants_filename="FORCE_CONSTANTS", log_level=0)
    expected = commensurate_modes(build_phonopy(stable_crystal.constants))
    np.testing.assert_allclose(phonon.run_qpoints(expected.qpoints).frequencies, expected.frequencies_THz, atol=1e-4)
    refitted = phonopy.load("phonopy_params.yaml", force_constants_filename=None, log_level=0)
    np.testing.assert_allclose(
        refitted.run_qpoints(expected.qpoints[1:]).frequencies, expected.frequencies_THz[1:], atol=1e-3
    )


@pytest.mark.parametrize("name", ["x.yaml", "Cs2NaInCl6.yml"])
def test_one_file_for_phonopy(toy_archive, stable_crystal, tmp_path, name):
    """It holds all that phonopy.load needs: cells, displacements, forces and force constants."""
    (path,) = export(toy_archive, *PAIR, "phonopy", tmp_path / name)
    assert path.is_file()
    assert [p.name for p in tmp_path.iterdir()] == [name]
    phonon = phonopy.load(path, produce_fc=False, log_level=0)
    np.testing.assert_allclose(phonon.force_constants, stable_crystal.constants.values, atol=1e-9)
    np.testing.assert_allclose(phonon.supercell.positions, stable_crystal.constants.supercell.positions, atol=1e-9)
    np.testing.assert_allclose(phonon.supercell.masses, stable_crystal.constants.masses_u)
    expected = commensurate_modes(build_phonopy(stable_crystal.constants))
    np.testing.assert_allclose(phonon.run_qpoints(expected.qpoints).frequencies, expected.frequencies_THz, atol=1e-5)
    with open_archive(toy_archive) as view:
        forces = view.read_array(*PAIR, "displace", "d0.0100/forces")
        moved = view.read_array(*PAIR, "displace", "d0.0100/displacements")
    np.testing.assert_allclose(phonon.forces, forces, atol=1e-7)
    kept = np.array([np.abs(vectors).max(axis=0) for vectors in moved])
    given = np.array([np.abs(entry["displacement"]) for entry in phonon.dataset["first_atoms"]])
    np.testing.assert_allclose(given, kept, atol=1e-9)


def test_names_of_phonopy_files_and_folders(toy_archive, tmp_path):
    (tmp_path / "x.yaml").mkdir()
    with pytest.raises(ArchiveError, match=r"x.yaml is a folder: name a file"):
        export(toy_archive, *PAIR, "phonopy", tmp_path / "x.yaml")
    (tmp_path / "x").write_text("mine")
    with pytest.raises(ArchiveError, match=r"x is a file: name a folder"):
        export(toy_archive, *PAIR, "phonopy", tmp_path / "x")


def test_h5md_is_valid_and_whole(toy_archive, tmp_path):
    (path,) = export(toy_archive, *PAIR, "h5md", tmp_path / "run.h5")
    with open_archive(toy_archive) as view:
        expected = read_trajectory(view, *PAIR, 1)
    with h5py.File(path) as file:
        assert tuple(file["h5md"].attrs["version"]) == (1, 1)
        assert file["h5md/author"].attrs["name"] == "Latdyn"
        assert file["h5md/creator"].attrs["name"].startswith("Latdyn")
        assert set(file) == {"h5md", "particles", "observables"}
        group = file["particles/replica_1"]
        assert group["box"].attrs["dimension"] == 3
        assert len(group["box"].attrs["boundary"]) == 3
        np.testing.assert_array_equal(group["position/value"], expected.positions_A)
        for element in ("position", "velocity", "force"):
            assert group[f"{element}/value"].shape == (200, 80, 3)
            assert group[f"{element}/step"].shape == (200,)
        np.testing.assert_allclose(group["force/value"], 96.48533 * expected.forces_eV_A, rtol=1e-5)
        assert group["force/value"].attrs["unit"] == "kJ mol-1 Angstrom-1"
        assert group["box/edges/value"].shape == (200, 3, 3)
        np.testing.assert_array_equal(group["box/edges/value"][-1], expected.cell_A)
        assert group["box/edges/step"] == group["position/step"]
        assert group["velocity/time"] == group["position/time"], "one dataset of times, linked"
        assert file["observables/replica_1/potential_energy/value"].shape == (200,)


def test_h5md_of_one_replica_is_called_all(builder, stable_crystal, tmp_path):
    builder.add_models("m")
    builder.add_material("Cs2AgBiBr6", stable_crystal.constants.unitcell)
    builder.add_all("Cs2AgBiBr6", "m", stable_crystal, segments=1)
    export(builder.path, "Cs2AgBiBr6", "m", "h5md", tmp_path / "run.h5")
    with h5py.File(tmp_path / "run.h5") as file:
        assert list(file["particles"]) == ["all"]
        assert set(file["observables"]) == {"potential_energy", "kinetic_energy"}


def test_mdanalysis_opens_the_h5md_file(toy_archive, tmp_path):
    (path,) = export(toy_archive, *PAIR, "h5md", tmp_path / "run.h5md")
    with open_archive(toy_archive) as view:
        expected = read_trajectory(view, *PAIR, 0)
    universe = MDAnalysis.Universe.empty(len(expected.numbers), trajectory=False)
    universe.load_new(str(path), format="H5MD")
    assert len(universe.trajectory) == len(expected)
    step = universe.trajectory[7]
    np.testing.assert_allclose(step.positions, expected.positions_A[7], rtol=1e-6)
    np.testing.assert_allclose(step.velocities, 1e3 * expected.velocities_A_fs[7], rtol=1e-5)  # in A/ps
    np.testing.assert_allclose(step.forces, 96.48533 * expected.forces_eV_A[7], rtol=1e-5)  # in kJ/(mol A)
    np.testing.assert_allclose(step.time, 1e-3 * expected.time_fs[7])  # in ps
    np.testing.assert_allclose(step.triclinic_dimensions, triclinic_vectors(triclinic_box(*expected.cell_A)), rtol=1e-5)


def test_extxyz_frames(toy_archive, stable_crystal, tmp_path):
    (path,) = export(toy_archive, *PAIR, "extxyz", tmp_path / "run.extxyz")
    frames = ase.io.read(path, ":")
    with open_archive(toy_archive) as view:
        expected = read_trajectory(view, *PAIR, 0)
    assert len(frames) == 400
    frame = frames[3]
    assert frame.info["time_fs"] == expected.time_fs[3]
    np.testing.assert_allclose(frame.positions, expected.positions_A[3], atol=1e-7)
    np.testing.assert_allclose(frame.get_forces(), expected.forces_eV_A[3], atol=1e-7)
    assert frame.get_potential_energy() == pytest.approx(expected.potential_energy_eV[3])
    assert frame.get_kinetic_energy() == pytest.approx(expected.kinetic_energy_eV[3], rel=1e-5)
    assert np.mean([f.get_temperature() for f in frames]) == pytest.approx(300.0, rel=0.03)


@pytest.mark.parametrize("suffix", ["traj", "json", "db", "extxyz"])
def test_relaxed_structure(toy_archive, stable_crystal, tmp_path, suffix):
    (path,) = export(toy_archive, *PAIR, "ase", tmp_path / f"relaxed.{suffix}")
    atoms = ase.io.read(path)
    np.testing.assert_allclose(atoms.positions, stable_crystal.constants.unitcell.positions, atol=1e-7)
    assert atoms.get_potential_energy() == -31.0
    np.testing.assert_allclose(atoms.get_stress(), [1e-6, 1e-6, 1e-6, 0, 0, 0], atol=1e-9)


@pytest.mark.parametrize(
    ("material", "model", "to", "message"),
    [
        ("Nope", "model-a", "ase", "no material 'Nope'.*Cs2AgBiBr6"),
        ("Cs2AgBiBr6", "nope", "ase", "no model 'nope'.*model-a, model-b"),
        ("Rb2AgInCl6", "model-a", "phonopy", "stage displace.*not done"),
        ("Cs2AgBiBr6", "model-a", "pdf", "no format 'pdf'"),
    ],
)
def test_wrong_requests(toy_archive, tmp_path, material, model, to, message):
    with pytest.raises(UsageError, match=message):
        export(toy_archive, material, model, to, tmp_path / "x")


def test_unknown_suffix(toy_archive, tmp_path):
    with pytest.raises(UsageError, match=r"ASE cannot write relaxed.blub \(no such format\)"):
        export(toy_archive, *PAIR, "ase", tmp_path / "relaxed.blub")
