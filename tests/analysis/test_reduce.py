from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest

from analysis.anharmonic import displacements, force_moments, harmonic_forces, sigma
from analysis.inputs import sites
from analysis.reduce import reduce_archive
from analysis.settings import AnalysisSettings, campaign_settings
from driver.archive.h5md import read_trajectory
from driver.archive.reader import open_archive
from driver.archive.records import ArchiveError, Header, Structure, TaskFailure, TaskKey
from driver.errors import UsageError

COARSE = AnalysisSettings(mesh_length_A=30.0)


@pytest.fixture(scope="module")
def reduction(toy_archive):
    return reduce_archive(toy_archive, COARSE)


@pytest.fixture(scope="module")
def rows(reduction):
    return reduction.table.set_index(["material", "model"])


def test_one_row_for_each_material_and_model(reduction):
    table = reduction.table
    assert len(table) == 8
    assert not table.duplicated(["material", "model"]).any()
    assert table["model_sha256"].str.len().eq(64).all()
    assert table["tolerance_factor"].eq(0.95).all()


def test_harmonic_crystal(rows):
    row = rows.loc["Cs2AgBiBr6", "model-a"]
    assert row["sigma_pooled"] < 1e-6
    assert row["harmonically_stable"]
    assert row["anharmonically_stable"]
    assert row["run_valid"]
    assert row["space_group_symbol"] == "Fm-3m"
    assert row["conventional_a_A"] == pytest.approx(11.2)
    assert 200 < row["C_V_300K_J_K_mol"] < 30 * 8.3145
    assert row["dynamics_evaluator"] == "torch float32"
    assert row["dynamics_status"] == "done"


def test_unstable_crystal_has_no_thermal_properties(rows):
    row = rows.loc["Cs2NaBiCl6", "model-a"]
    assert row["harmonically_stable"] == False  # noqa: E712 (pandas' boolean)
    assert row["min_frequency_commensurate_THz"] < -0.1
    assert row["imaginary_modes_commensurate"] > 0
    assert np.isnan(row["C_V_300K_J_K_mol"])


def test_sigma_is_that_of_the_frames_after_equilibration(toy_archive, rows, stable_crystal):
    constants = stable_crystal.constants
    with open_archive(toy_archive) as view:
        replicas = [read_trajectory(view, "Cs2NaInCl6", "model-b", replica) for replica in (0, 1)]
    moments = []
    for trajectory in replicas:
        kept = trajectory.time_fs > 1000.0
        assert kept.sum() == 100
        u = displacements(
            trajectory.positions_A[kept], constants.supercell.positions, constants.supercell.cell, constants.masses_u
        )
        forces = trajectory.forces_eV_A[kept]
        moments.append(force_moments(forces, harmonic_forces(u, stable_crystal.matrix), ["all"] * 80))
    row = rows.loc["Cs2NaInCl6", "model-b"]
    assert row["sigma_pooled"] == pytest.approx(sigma(moments).pooled, rel=1e-9)
    assert row["sigma_frames"] == 200
    assert row["dynamics_status"] == "partial"


def test_equilibration_can_be_overridden(toy_archive):
    table = reduce_archive(toy_archive, dataclasses.replace(COARSE, equilibration_ps=1.5)).table
    assert table.set_index(["material", "model"]).loc["Cs2NaInCl6", "model-a"]["sigma_frames"] == 100


def test_sites_of_an_elpasolite(rows):
    row = rows.loc["Cs2NaInCl6", "model-a"]
    by_site = dict(part.split(": ") for part in row["sigma_sites"].split("; "))
    assert list(by_site) == ["Cs", "Ag", "Bi", "Br"]
    for role, site in zip(("A", "M", "M_prime", "X"), by_site, strict=True):
        assert row[f"sigma_{role}"] == pytest.approx(float(by_site[site]), abs=1e-4)


def test_failed_material_is_undecided_and_says_why(rows):
    row = rows.loc["Rb2AgInCl6", "model-b"]
    assert row["relax_status"] == "quarantined"
    assert row["displace_status"] == "missing"
    assert pd.isna(row["harmonically_stable"])
    assert pd.isna(row["anharmonically_stable"])
    assert "does not know Rb" in row["failure"]


def test_processes_give_the_same_table(toy_archive, reduction):
    pd.testing.assert_frame_equal(reduce_archive(toy_archive, COARSE, processes=2).table, reduction.table)


def test_exploded_run_is_never_unstable(builder, stable_crystal):
    """Enough frames for a sigma are there, but the chain was given up: no sigma, no label."""
    builder.add_models("m")
    builder.add_material("Cs2AgBiBr6", stable_crystal.constants.unitcell)
    builder.add_all("Cs2AgBiBr6", "m", stable_crystal, segments=2, quartic=2000.0)
    before = reduce_archive(builder.path, COARSE).table.iloc[0]
    assert before["sigma_pooled"] > 0.8
    builder.fail("Cs2AgBiBr6", "m", "dynamics", "exploded at 2.3 ps", segment=2)
    after = reduce_archive(builder.path, COARSE).table.iloc[0]
    assert pd.isna(after["sigma_pooled"])
    assert pd.isna(after["anharmonically_stable"])
    assert after["harmonically_stable"]
    assert "exploded at 2.3 ps" in after["failure"]
    assert after["dynamics_segments"] == 2


def test_hot_run_is_not_labelled(builder, stable_crystal, make_dynamics):
    builder.add_models("m")
    builder.add_material("Cs2AgBiBr6", stable_crystal.constants.unitcell)
    builder.add_all("Cs2AgBiBr6", "m", stable_crystal, segments=1)
    hot = [
        make_dynamics(TaskKey("Cs2AgBiBr6", "m", "dynamics", s), stable_crystal, temperature_K=450.0) for s in (1, 2)
    ]
    builder.commit(*hot)
    row = reduce_archive(builder.path, COARSE).table.iloc[0]
    assert not row["run_valid"]
    assert pd.isna(row["anharmonically_stable"])
    assert "asked for 300 K" in row["anharmonic_reason"]


def test_partial_archives(builder, stable_crystal):
    """Nothing at all; materials only; a relaxation only; a failure that may be retried."""
    with pytest.raises(UsageError, match="nothing to reduce"):
        reduce_archive(builder.path, COARSE)
    builder.add_models("m")
    builder.add_material("Cs2AgBiBr6", stable_crystal.constants.unitcell)
    builder.add_material("Cs2NaInCl6", stable_crystal.constants.unitcell)
    assert set(reduce_archive(builder.path, COARSE).table["relax_status"]) == {"missing"}
    builder.commit(
        TaskFailure(TaskKey("Cs2NaInCl6", "m", "relax"), "RuntimeError", "out of luck", "Traceback"), quarantined=False
    )
    table = reduce_archive(builder.path, COARSE).table.set_index("material")
    assert table.loc["Cs2NaInCl6", "relax_status"] == "failed"
    assert "out of luck" in table.loc["Cs2NaInCl6", "failure"]


def test_material_that_could_not_be_read(builder):
    """It has no atoms; all that is known of it is why."""
    builder.add_models("m")
    builder.add_material("broken", Structure(np.zeros(0, int), np.zeros((0, 3)), np.eye(3)), "", "broken.cif")
    builder.fail("broken", "m", "relax", "broken.cif is not a structure that ASE reads")
    row = reduce_archive(builder.path, COARSE).table.iloc[0]
    assert "not a structure that ASE reads" in row["failure"]
    assert pd.isna(row["harmonically_stable"])


def test_missing_displacement_set_is_named_not_guessed(toy_archive):
    row = reduce_archive(toy_archive, dataclasses.replace(COARSE, bands_distance_A=0.03)).table.iloc[0]
    assert pd.isna(row["harmonically_stable"])
    assert "no displacements of 0.03 A" in row["failure"]
    assert "d0.0100" in row["failure"]
    assert row["sigma_pooled"] >= 0


def test_no_archive(tmp_path):
    with pytest.raises(ArchiveError, match="no such archive"):
        reduce_archive(tmp_path / "none.h5")


def test_physics_has_the_last_word_on_settings():
    header = Header("c", 0, "displace: {sigma_distance_A: 0.01}\n", {"displace.sigma_distance_A": "0.02"}, {})
    assert campaign_settings(header).sigma_distance_A == 0.02
    assert campaign_settings(header, AnalysisSettings(sigma_distance_A=0.03)).sigma_distance_A == 0.03
    assert campaign_settings(header).equilibration_ps is None
    with pytest.raises(UsageError, match="configuration"):
        campaign_settings(dataclasses.replace(header, config_yaml="a: [1"))


def test_wrong_settings_are_refused():
    with pytest.raises(UsageError, match="negative"):
        AnalysisSettings(tolerance_THz=0.1)
    with pytest.raises(UsageError, match="mesh"):
        AnalysisSettings(mesh_length_A=0.0)
    with pytest.raises(UsageError, match="equilibration"):
        AnalysisSettings(equilibration_ps=-1.0)


def test_site_names(make_elpasolite):
    assert sites(make_elpasolite(("Cs", "Ag", "Bi", "Br"), x=0.24), 1e-3).names[:4] == ("Cs", "Cs", "Ag", "Bi")
    names = sites(make_elpasolite(("K", "K", "Al", "F"), x=0.22), 1e-3).names
    assert names[0] == names[1] == "K 8c"
    assert names[2] in ("K 4a", "K 4b")
    assert names[3:] == ("Al",) + 6 * ("F",)
