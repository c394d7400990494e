"""What `plan` and `run` both find wrong, or odd, before anything runs."""

from __future__ import annotations

from pathlib import Path

import ase.io
import pytest
from archive_samples import attempt, failure
from ase.build import bulk
from campaigns import ROOT

from driver import plan, run
from driver.archive.records import ArchiveError, Header, TaskKey
from driver.archive.writer import ArchiveWriter
from driver.campaign import compose_campaign
from driver.checks import check
from driver.download import hash_file
from driver.errors import UsageError
from driver.physics_settings import physics_of

MODEL = ROOT / "models" / "demo" / "demo.model"


@pytest.fixture
def crystals(tmp_path) -> Path:
    folder = tmp_path / "crystals"
    folder.mkdir()
    ase.io.write(folder / "salt.cif", bulk("NaCl", "rocksalt", a=5.64))
    return folder


def own(crystals: Path, *overrides: str) -> list[str]:
    """A campaign of one's own of these crystals."""
    mine = ["name=mine", f"runs={crystals.parent}", "model=demo", f"materials.structures=[{crystals}]"]
    return [*mine, *overrides]


def warnings(crystals: Path, *overrides: str) -> str:
    return "\n".join(check(compose_campaign(own(crystals, *overrides))))


def make_archive(overrides: list[str]) -> None:
    """The archive that a run of this campaign makes, without its results."""
    campaign = compose_campaign(overrides)
    settings = campaign.configuration.settings
    settings.folder.mkdir()
    header = Header(settings.name, settings.seed, campaign.configuration.yaml, physics_of(settings), {})
    with ArchiveWriter.create(campaign.archive, header) as writer:
        writer.add_materials(campaign.materials.records)
        writer.add_models(campaign.model_records)
        writer.commit([attempt(failure(TaskKey("salt", "demo", "relax")))])  # a model is in use from then on


def test_a_usual_campaign_raises_no_eyebrow(crystals):
    assert warnings(crystals) == ""
    assert check(compose_campaign(["campaign=demo", "runs=/tmp"])) == ()


@pytest.mark.parametrize("command", [plan.print_plan, run.load_campaign])
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("execution.walltime=2h", "execution.walltime = '2h': write HH:MM:SS"),
        ("runs={file}", "is not a folder; set runs= or name= to another"),
        ("runs={file}/deeper", "is not a folder; set runs= or name= to another"),
        ("models.demo.key=a/b", "model key 'a/b' cannot be used"),
        ("materials.formulas=[CsSnBr3]", "material CsSnBr3: model demo does not know Sn"),
        ("supercell.min_length_A=1e6", "material salt: its supercell would have"),
    ],
)
def test_plan_and_run_refuse_the_same(crystals, command, override, message):
    (crystals.parent / "file").write_text("")
    with pytest.raises((UsageError, ArchiveError)) as caught:
        command(own(crystals, override.format(file=crystals.parent / "file")), None)
    assert message in str(caught.value)
    assert not (crystals.parent / "mine").exists()


def test_a_key_that_the_archive_cannot_have_names_the_file(crystals):
    (crystals / "salt.cif").rename(crystals / "structure.cif")
    with pytest.raises(UsageError, match=r"structure\.cif: material key 'structure' is reserved: .* \(rename the file"):
        warnings(crystals)


def test_skipping_materials_of_unknown_elements_warns(crystals):
    text = warnings(crystals, "materials.formulas=[CsSnBr3,Cs2AgBiBr6]", "materials.on_error=skip")
    assert text == "model demo does not know elements of CsSnBr3 (Sn): tasks of such materials will be given up"


def test_many_materials_of_unknown_elements_stay_readable(crystals):
    many = ["materials=halide_double_perovskites", "materials.limit=100"]
    with pytest.raises(UsageError) as caught:
        check(compose_campaign(own(crystals, *many)))
    assert len(str(caught.value).splitlines()) == 22 and str(caught.value).endswith("and 80 more")
    text = warnings(crystals, *many, "materials.on_error=skip")
    assert "and 97 more: tasks of such materials will be given up" in text and "\n" not in text


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["displace.distances_A=[1.5]", "displace.sigma_distance_A=1.5", "displace.bands_distance_A=1.5"], "0.1 A"),
        (["dynamics.temperature_K=1e5"], "dynamics.temperature_K = 100000: crystals are usually run at 1 to 3000 K"),
        (["dynamics.timestep_fs=10"], "dynamics.timestep_fs = 10: above 5 fs few crystals are stable"),
        (["relax.fmax_eV_A=1"], "relax.fmax_eV_A = 1: "),
        (["supercell.min_length_A=60"], "supercells of more than 5000 atoms: salt ("),
        (["dynamics.replicas=10000"], "more than 50000 atoms in one task, all replicas together: salt (1.6e+05)"),
        (["dynamics.production_ps=99998", "dynamics.replicas=2000"], "the archive will grow to about "),
    ],
)
def test_what_is_likely_a_mistake_is_a_warning(crystals, overrides, message):
    assert message in warnings(crystals, *overrides)


def test_a_unit_of_length_that_is_not_angstrom_is_a_warning(crystals):
    ase.io.write(crystals / "nanometres.cif", bulk("NaCl", "rocksalt", a=0.564))
    assert "another unit of length?): nanometres (0.0224)" in warnings(crystals)


def test_an_archive_larger_than_the_disk_is_a_warning(crystals, monkeypatch):
    monkeypatch.setattr("driver.checks._free_bytes", lambda folder: 1e3)
    assert "and 0.001 MB are free; raise dynamics.frame_interval_fs" in warnings(crystals)


def changed_structure(crystals: Path) -> list[str]:
    ase.io.write(crystals / "salt.cif", bulk("NaBr", "rocksalt", a=5.64))
    return []


def rescaled_structure(crystals: Path) -> list[str]:
    ase.io.write(crystals / "salt.cif", bulk("NaCl", "rocksalt", a=5.7))
    return []


def changed_model(crystals: Path) -> list[str]:
    other = crystals.parent / "other.model"
    other.write_bytes(MODEL.read_bytes() + b"\0")
    return [f"models.demo.path={other}", f"models.demo.sha256={hash_file(other)}"]


@pytest.mark.parametrize("command", [plan.print_plan, run.load_campaign])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (changed_structure, "material salt: archive 1 of Z=11, 1 of Z=17, now"),
        (rescaled_structure, "material salt: archive a cell of 44.8"),
        (changed_model, "model demo: sha256: archive 'c8c4ada0f7"),
        (lambda crystals: ["models.demo.head=omat"], "model demo: head: archive '', now 'omat'"),
        (lambda crystals: ["dynamics.temperature_K=400"], "dynamics.temperature_K: archive 300.0, now 400.0"),
    ],
)
def test_changed_inputs_of_a_campaign_are_refused_by_name(crystals, command, change, message):
    make_archive(own(crystals))
    check(compose_campaign(own(crystals)))
    overrides = own(crystals, *change(crystals))
    with pytest.raises(UsageError) as caught:
        command(overrides, None)
    assert "mine/archive.h5 was made with other inputs" in str(caught.value) and message in str(caught.value)
    assert "restore them, or set another name=" in str(caught.value)


def test_more_materials_models_and_picoseconds_are_no_change(crystals):
    make_archive(own(crystals))
    ase.io.write(crystals / "new.cif", bulk("AgCl", "rocksalt", a=5.5))
    longer = ["model=[demo,file]", f"models.file.path={MODEL}", "dynamics.production_ps=20"]
    assert warnings(crystals, *longer) == ""
