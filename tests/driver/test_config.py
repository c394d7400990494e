"""Composition of the configuration, and what it says about mistakes."""

from __future__ import annotations

import pytest

from driver.config import compose, presets
from driver.errors import UsageError
from driver.physics_settings import physics_differences, physics_of
from driver.settings import Settings, SupercellSettings

OWN = ("name=mine", "materials=formulas", "materials.formulas=[CsSnBr3]", "model=demo")
"""A campaign of the user's own, without a preset."""


def test_a_campaign_of_ones_own_has_the_documented_defaults():
    """Nothing of the demo leaks into it."""
    configuration = compose(OWN)
    dynamics = configuration.settings.dynamics
    assert (dynamics.equilibration_ps, dynamics.production_ps, dynamics.segment_ps) == (2.0, 10.0, 1.0)
    assert configuration.settings == Settings("mine")
    assert configuration.materials.formulas == ("CsSnBr3",)


def test_without_campaign_and_materials_the_presets_are_listed():
    for overrides in ([], ["name=mine"], ["model=mace-mpa-0", "seed=3"]):
        with pytest.raises(UsageError, match="nothing to run") as caught:
            compose(overrides)
        for group in ("campaign", "materials", "model"):
            (line,) = (line for line in str(caught.value).splitlines() if line.strip().startswith(f"{group}:"))
            assert all(name in line for name in presets()[group])


@pytest.mark.parametrize(
    ("left_out", "message"),
    [
        ("name", "the campaign has no name: set name=mine, and it lives in runs/mine/"),
        ("model", "no model is selected: set model=mace-mpa-0, or another of demo, file, "),
    ],
)
def test_what_a_campaign_lacks_is_named(left_out, message):
    kept = [override for override in OWN if override.partition("=")[0] != left_out]
    with pytest.raises(UsageError, match=message):
        compose(kept)
    with pytest.raises(UsageError, match=r"has no name: .*; no model is selected: "):
        compose(OWN[1:3])


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("runs=/data/größe/a b", "/data/größe/a b"),
        ("runs=~/campaigns", "~/campaigns"),
        ("runs=/data/a(b", "/data/a(b"),
        ("runs=/data/it's", "/data/it's"),
        ("runs='/data/a,b'", "/data/a,b"),
        ("runs=C:\\data", "C:\\data"),
    ],
)
def test_paths_need_no_quotes_of_hydras_own(override, value):
    assert compose([*OWN, override]).settings.runs == value


def test_lists_of_paths_need_no_quotes_of_hydras_own():
    given = "materials.structures=[~/crystals/*.cif, größe/a b.vasp,plain.cif]"
    assert compose([*OWN, given]).materials.structures == ("~/crystals/*.cif", "größe/a b.vasp", "plain.cif")


def test_home_is_found_where_a_campaign_lives(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    assert str(compose([*OWN, "runs=~/runs"]).settings.archive) == "/home/somebody/runs/mine/archive.h5"


@pytest.mark.parametrize("campaign", presets()["campaign"])
@pytest.mark.parametrize("protocol", presets()["protocol"])
def test_every_preset_composes(campaign, protocol):
    assert compose([f"campaign={campaign}", f"protocol={protocol}"]).settings.name


@pytest.mark.parametrize("group", ["materials", "model", "relax", "displace", "dynamics"])
def test_every_preset_of_a_group_composes(group):
    for name in presets()[group]:
        compose(["campaign=demo", f"{group}={name}"])


def test_protocol_paper_is_that_of_the_study():
    settings = compose([*OWN, "protocol=paper"]).settings
    assert settings.relax.mode == "none"
    assert (settings.displace.sigma_distance_A, settings.displace.bands_distance_A) == (0.02, 0.01)
    assert (settings.dynamics.ensemble, settings.dynamics.timestep_fs, settings.dynamics.replicas) == (
        "andersen",
        1.0,
        2,
    )
    assert settings.displace.dtype == settings.dynamics.dtype == "float32"


def test_several_models_and_their_settings():
    configuration = compose([*OWN[:3], "model=[demo,mace-mh-1]", "models.mace-mh-1.head=omol"])
    assert [(m.key, m.head) for m in configuration.models] == [("demo", ""), ("mace-mh-1", "omol")]


def test_presets_of_the_users_own(tmp_path):
    folder = tmp_path / "my presets, größe"
    (folder / "campaign").mkdir(parents=True)
    (folder / "campaign" / "mine.yaml").write_text(
        "# @package _global_\nname: mine\nmaterials: {formulas: [Cs2AgBiBr6]}\n"
    )
    assert compose(["campaign=mine", "model=demo"], folder).settings.name == "mine"
    with pytest.raises(UsageError, match="campaign=mime: no such preset; did you mean mine"):
        compose(["campaign=mime"], folder)


@pytest.mark.parametrize("content", ["name: [mine\n", "defaults: 3\n", "name: ???\n", "- a\n", "nonsense\n"])
def test_a_preset_that_is_no_preset_is_one_line(tmp_path, content):
    (tmp_path / "campaign").mkdir()
    (tmp_path / "campaign" / "mine.yaml").write_text("# @package _global_\n" + content)
    with pytest.raises(UsageError) as caught:
        compose(["campaign=mine", "materials=demo", "model=demo"], tmp_path)
    assert "\n" not in str(caught.value)


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
        ("dynamics.timestep_fs=null", "dynamics.timestep_fs = null: expected a number"),
        ("dynamics.temperature_K=inf", "dynamics.temperature_K = inf: expected a number"),
        ("dynamics.replicas=inf", "dynamics.replicas = inf: expected a whole number"),
        ("dynamics.replicas=nan", "dynamics.replicas = nan: expected a whole number"),
        ("supercell.matrix=2", 'supercell.matrix = 2: expected a list, as "supercell.matrix=[2]"'),
        ("supercell.matrix=twice", "supercell.matrix = 'twice': expected a list, as [2,2,2]"),
        ("dynamics.temperature_K=300,400", "dynamics.temperature_K has several values"),
        ("dynamics.temprature_K=3", "did you mean dynamics.temperature_K? (`run --help` explains overrides)"),
        ("dynamics.production_ps=1e9", "at most 100000 are possible: raise dynamics.segment_ps"),
        ("dynamics.friction_per_ps=-1", "dynamics.friction_per_ps must not be negative"),
        ("dynamics.friction_per_ps=0", "without a thermostat: dynamics.ensemble=nve"),
        ("dynamics.collision_probability=2", "dynamics.collision_probability lies above 0 and is at most 1"),
        ("dynamics.max_temperature_factor=0", "dynamics.max_temperature_factor must be positive"),
        ("dynamics.min_distance_A=-1", "dynamics.min_distance_A must not be negative"),
        ("dynamics.initial_temperature_K=0", "dynamics.initial_temperature_K must be positive"),
        ("displace.distances_A=[0.01,0.01]", "lengths must differ by at least 0.0001 A"),
        ("displace.distances_A=[1e-6]", "lengths of at least 0.0001 A"),
        ("displace.symprec_A=0", "displace.symprec_A = 0.0: must be positive"),
        ("execution.walltime=2h", "execution.walltime = '2h': write HH:MM:SS"),
        ("execution.walltime=0", "execution.walltime = '0': must be positive"),
        ("execution.signals=[SIGKILL]", "execution.signals: 'SIGKILL' cannot be handled"),
        ("execution.signals=[SIGFOO]", "execution.signals: 'SIGFOO' cannot be handled"),
        ("execution.device=cuda:x", "the device is auto, cpu, cuda or cuda:N"),
        ("execution.threads=0", "execution.threads = 0: must be at least 1"),
        ("execution.capacity_atoms=-5", "execution.capacity_atoms = -5: must be at least 1"),
        ("execution.grace_s=-1", "execution.grace_s = -1.0: must not be negative"),
        ("execution.commit_every_s=0", "execution.commit_every_s = 0.0: must be positive"),
        ("seed=-1", "seed = -1: must be at least 0"),
        ("seed=99999999999999999999999", "must be at least 0 and below 2^63"),
        ("stages=[]", "stages: none is selected"),
        ("name=..", "name: '..' cannot be a folder"),
        ("name=' x'", "cannot be a folder"),
        ("name=" + "x" * 300, "cannot be a folder"),
        ("name=null", "the campaign has no name"),
        ("campaign=null", "campaign=null: leave campaign= out, or pick one of demo, smoke, study"),
        ("relax=null", "relax=null: leave relax= out, or pick one of default, none"),
        ("campaign=[demo,smoke]", "campaign=demo,smoke: one preset only; there is demo, smoke, study"),
        ("dynamics=[1,2]", "dynamics=1,2: one preset only"),
        ("materials.formulas=[Cs2AgBiBr6", "a ']' is missing; quote the whole for the shell"),
        ("materials.formulas=[Cs2AgBiBr6]]", "a '[' is missing"),
        ("materials.formulas='Cs2AgBiBr6", "a ' is missing"),
        ("materials.formulas=CsSnBr3", 'expected a list, as "materials.formulas=[CsSnBr3]"'),
        ("models.mace-mpa-0.head=x", "model 'mace-mpa-0' is not selected"),
        ("~campaign", "'~campaign' is not an override"),
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
    with pytest.raises(UsageError) as caught:
        compose(["campaign=demo", override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_physics_leaves_out_what_may_differ_between_two_runs():
    base = compose(OWN).settings
    longer = compose([*OWN, "dynamics.production_ps=3", "execution.max_attempts=9", "runs=elsewhere"]).settings
    assert physics_of(base) == physics_of(longer)
    assert physics_of(base) != physics_of(compose([*OWN, "dynamics.temperature_K=400"]).settings)
    assert physics_of(base) != physics_of(compose([*OWN, "seed=1"]).settings)
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
