"""Composition of the configuration, and what it says about mistakes."""

from __future__ import annotations

import pytest

from driver.config import compose, presets
from driver.errors import UsageError
from driver.settings import Settings, SupercellSettings, physics_differences, physics_of


def test_defaults_are_the_demo_campaign():
    configuration = compose([])
    assert configuration.settings.name == "demo"
    assert [model.key for model in configuration.models] == ["demo"]
    assert "Cs2AgBiBr6" in configuration.materials.formulas


@pytest.mark.parametrize("campaign", presets()["campaign"])
@pytest.mark.parametrize("protocol", presets()["protocol"])
def test_every_preset_composes(campaign, protocol):
    assert compose([f"campaign={campaign}", f"protocol={protocol}"]).settings.name


@pytest.mark.parametrize("group", ["materials", "model", "relax", "displace", "dynamics"])
def test_every_preset_of_a_group_composes(group):
    for name in presets()[group]:
        compose([f"{group}={name}"])


def test_protocol_paper_is_that_of_the_study():
    settings = compose(["protocol=paper"]).settings
    assert settings.relax.mode == "none"
    assert (settings.displace.sigma_distance_A, settings.displace.bands_distance_A) == (0.02, 0.01)
    assert (settings.dynamics.ensemble, settings.dynamics.timestep_fs, settings.dynamics.replicas) == (
        "andersen",
        1.0,
        2,
    )
    assert settings.displace.dtype == settings.dynamics.dtype == "float32"


def test_several_models_and_their_settings():
    configuration = compose(["model=[demo,mace-mh-1]", "models.mace-mh-1.head=omol"])
    assert [(m.key, m.head) for m in configuration.models] == [("demo", ""), ("mace-mh-1", "omol")]


def test_presets_of_the_users_own(tmp_path):
    (tmp_path / "campaign").mkdir()
    (tmp_path / "campaign" / "mine.yaml").write_text(
        "# @package _global_\nname: mine\nmaterials: {formulas: [Cs2AgBiBr6]}\n"
    )
    assert compose(["campaign=mine"], tmp_path).settings.name == "mine"
    with pytest.raises(UsageError, match="campaign=mime: no such preset; did you mean mine"):
        compose(["campaign=mime"], tmp_path)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("campaign=smok", "campaign=smok: no such preset; did you mean smoke?"),
        ("model=[demo,mpa]", "model=mpa: no such preset; there is demo, file"),
        ("dynamics.timstep_fs=1", "unknown key 'dynamics.timstep_fs'; did you mean dynamics.timestep_fs?"),
        ("timestep_fs=1", "did you mean dynamics.timestep_fs?"),
        ("+dynamics.pressure_GPa=1", "unknown key 'dynamics.pressure_GPa'"),
        ("dynamics.timestep_fs=fast", "dynamics.timestep_fs = 'fast': expected a number"),
        ("dynamics.replicas=1.5", "dynamics.replicas = 1.5: expected a whole number"),
        ("relax.keep_symmetry=3", "relax.keep_symmetry = 3: expected true or false"),
        ("supercell.matrix=2", r"supercell.matrix = 2: expected a list, as \[2, 2, 2\]"),
        ("dynamics.ensemble=npt", "dynamics.ensemble: 'npt' is not one of langevin, andersen, nve"),
        (
            "dynamics.frame_interval_fs=3",
            "dynamics.frame_interval_fs = 3.0: must be a multiple of dynamics.timestep_fs",
        ),
        ("dynamics.production_ps=1.25", "must be a multiple of dynamics.segment_ps"),
        ("displace.sigma_distance_A=0.02", "is not among displace.distances_A"),
        ("stages=[relax,phonons]", "stages: 'phonons' is not one of relax, displace, dynamics"),
        ("execution.device=gpu", "device is auto, cpu, cuda or cuda:N"),
        ("name=a/b", "name: 'a/b' cannot be a folder"),
        ("smoke", "'smoke' is not an override; write KEY=VALUE"),
        ("model=[]", "no model is selected"),
    ],
)
def test_a_mistake_is_named_with_its_remedy(override, message):
    with pytest.raises(UsageError, match=message.replace("'", ".").replace("?", r"\?")) as caught:
        compose([override])
    assert "\n" not in str(caught.value)


def test_physics_leaves_out_what_may_differ_between_two_runs():
    base = compose([]).settings
    longer = compose(["dynamics.production_ps=3", "execution.max_attempts=9", "runs=elsewhere"]).settings
    assert physics_of(base) == physics_of(longer)
    assert physics_of(base) != physics_of(compose(["dynamics.temperature_K=400"]).settings)
    assert physics_of(base) != physics_of(compose(["seed=1"]).settings)
    assert "displace.distances_A" in physics_of(Settings("x"))


def physics_with(matrix, min_length_A=None):
    """Physics settings now, and as an earlier version stored them for the same configuration."""
    now = physics_of(Settings("x", supercell=SupercellSettings(matrix, min_length_A)))
    return {name: value for name, value in now.items() if name != "supercell.matrix_meaning"}, now


@pytest.mark.parametrize(
    ("matrix", "min_length_A"),
    [
        ((2, 2, 2), None),
        ((1, 2, 3), None),
        ((-1, 1, 1, 1, -1, 1, 1, 1, -1), None),
        ((2, 0, 0, 0, 2, 0, 0, 0, 2), None),
        ((1, 1, 0, 0, 2, 0, 0, -1, 2), 12.0),  # ignored
    ],
)
def test_a_symmetric_matrix_means_what_it_always_did(matrix, min_length_A):
    earlier, now = physics_with(matrix, min_length_A)
    assert earlier == now
    assert physics_differences(earlier, now) == []


def test_nine_numbers_that_were_columns_are_another_supercell():
    """The line names the value that continues the archive, which is accepted."""
    matrix, rows = (1, 1, 0, 0, 2, 0, 0, -1, 2), (1, 0, 0, 1, 2, -1, 0, 0, 2)
    earlier, now = physics_with(matrix)
    assert physics_differences(now, now) == []
    assert physics_differences(earlier, now) == [
        "supercell.matrix: archive [1, 0, 0, 1, 2, -1, 0, 0, 2] (stored as [1, 1, 0, 0, 2, 0, 0, -1, 2] by a version"
        " that took the nine numbers as columns; they are rows), now [1, 1, 0, 0, 2, 0, 0, -1, 2]"
    ]
    assert physics_differences(earlier, physics_with(rows)[1]) == []
    (only,) = physics_differences(earlier, physics_with((2, 2, 2))[1])
    assert only.startswith("supercell.matrix: ")


def test_a_meaning_of_a_later_version_is_a_difference():
    _, now = physics_with((1, 1, 0, 0, 2, 0, 0, -1, 2))
    (only,) = physics_differences({**now, "supercell.matrix_meaning": '"spirals"'}, now)
    assert "spirals" in only
