"""The command line of the driver, as commands that a user types; no MPI."""

from __future__ import annotations

import json
import pickle
import re
import shutil
import zipfile
from pathlib import Path

import ase.io
import pytest
from ase import Atoms
from ase.build import bulk
from campaigns import ROOT, SHORT, call, run_campaign

from driver.__main__ import main
from driver.archive.datasets import create_dataset
from driver.archive.reader import open_archive
from driver.archive.records import Header, ModelRecord
from driver.archive.schema import header_checksum
from driver.archive.verify import verify
from driver.archive.writer import ArchiveWriter
from driver.config import compose
from driver.download import hash_file
from driver.physics_settings import physics_of


@pytest.fixture(scope="module")
def troubled(tmp_path_factory) -> tuple[Path, object]:
    """A campaign with an unreadable structure, an element that the model lacks, and two atoms on top of each other."""
    folder = tmp_path_factory.mktemp("troubled")
    crystals = folder / "crystals"
    crystals.mkdir()
    ase.io.write(crystals / "good.cif", bulk("NaCl", "rocksalt", a=5.7))
    ase.io.write(crystals / "strange.cif", bulk("UO", "rocksalt", a=4.9))
    collapsed = Atoms(
        "Na2Cl2", scaled_positions=[[0, 0, 0], [0, 0, 0.001], [0.5, 0.5, 0.5], [0.5, 0, 0]], cell=[6, 6, 6]
    )
    collapsed.pbc = True
    ase.io.write(crystals / "collapsed.vasp", collapsed)
    (crystals / "broken.cif").write_text("data_broken\n_cell_length_a ?\n")
    overrides = [
        "materials=structures",
        f"materials.structures=[{crystals}]",
        "materials.on_error=skip",
        "supercell.matrix=[1,1,1]",
        "name=troubled",
    ]
    return folder, run_campaign(folder, *SHORT, *overrides)


def test_the_others_finish_and_the_exit_code_says_that_not_all_did(troubled):
    folder, result = troubled
    assert result.returncode == 1, result.stderr
    with open_archive(folder / "troubled" / "archive.h5") as view:
        states = view.task_states()
        done = {key.material for key, state in states.items() if key.stage == "dynamics" and state.status == "done"}
        given_up = {key.material for key, state in states.items() if state.status == "quarantined"}
        assert done == {"good"}
        assert given_up == {"strange", "collapsed"}
        assert [refused.key for refused in view.refused()] == ["broken"]


def test_the_report_names_the_three_and_why(troubled):
    folder, _ = troubled
    archive = folder / "troubled" / "archive.h5"
    result = call(["analysis", "report", str(archive), "-o", str(folder / "report")])
    assert result.returncode == 0, result.stderr
    page = (folder / "report" / "index.html").read_text()
    for name, reason in (("strange", "does not know O, U"), ("collapsed", "apart"), ("broken", "broken.cif")):
        assert name in page and reason in page


def test_status_shows_it_and_a_second_run_has_nothing_to_do(troubled):
    folder, _ = troubled
    archive = folder / "troubled" / "archive.h5"
    result = call(["driver", "status", str(archive)])
    assert result.returncode == 0 and "collapsed / demo / relax:" in result.stdout
    assert "1 materials refused" in result.stdout
    verified = call(["driver", "verify", str(archive)])
    assert verified.returncode == 0 and "0 things wrong" in verified.stdout


def test_verify_names_what_is_damaged(troubled, tmp_path):
    folder, _ = troubled
    with open_archive(folder / "troubled" / "archive.h5") as view:
        forces = view.read("good", "demo", "displace", "d0.0100/forces")
    data = bytearray((folder / "troubled" / "archive.h5").read_bytes())
    place = data.find(forces.tobytes()[:64])
    assert place > 0
    data[place + 5] ^= 0x40
    (tmp_path / "archive.h5").write_bytes(data)
    result = call(["driver", "verify", str(tmp_path / "archive.h5")])
    assert result.returncode == 1 and "good / demo / displace" in result.stdout


def test_unusable_materials_are_refused_before_anything_runs(troubled, tmp_path):
    folder, _ = troubled
    result = run_campaign(
        tmp_path, *SHORT, "materials=structures", f"materials.structures=[{folder / 'crystals'}]", "name=refused"
    )
    assert result.returncode == 2 and "broken.cif" in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "refused").exists()
    result = run_campaign(tmp_path, *SHORT, "materials.formulas=[Cs2AgBiBr6,NaCl]", "name=refused")
    assert result.returncode == 2 and "NaCl" in result.stderr
    assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "campaign=smok"], "did you mean smoke"),
        (["run", "campaign=smoke", "model=[mace-mpa-0]"], "python -m driver models fetch mace-mpa-0"),
        (["run", "campaign=smoke", "model=file", "models.file.path=/nowhere.model"], "/nowhere.model does not exist"),
        (["run", "campaign=smoke", "stages=[dynamics]"], "dynamics needs relax"),
        (["run", "campaign=null"], "campaign=null: leave campaign= out"),
        (["plan", "campaign=smoke", "execution.walltime=2h"], "execution.walltime = '2h'"),
        (["plan", "campaign=smoke", "runs=setup.cfg"], "setup.cfg is not a folder"),
        (["run", "campaign=smoke", "materials.formulas=[Cs2AgBiBr6"], "a ']' is missing"),
        (["run", "materials=demo", "name=mine"], "no model is selected"),
        (["run", "--config-dir", "/nowhere"], "--config-dir: /nowhere is not a folder"),
        (["status", "/nowhere/archive.h5"], "/nowhere/archive.h5"),
        (["verify", "setup.cfg"], "setup.cfg"),
        (["models", "fetch", "mace"], "no model 'mace'"),
        (["models", "fetch"], "name the models to fetch"),
    ],
)
def test_wrong_usage_is_one_line_with_the_remedy(arguments, message, tmp_path, monkeypatch):
    monkeypatch.setenv("LATDYN_MODELS", str(tmp_path))
    if arguments[0] == "run":
        arguments = [*arguments, f"runs={tmp_path}"]
    result = call(["driver", *arguments])
    assert result.returncode == 2
    assert message in result.stderr and "Traceback" not in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_debug_shows_the_traceback():
    result = call(["driver", "plan", "campaign=null", "--debug"])
    assert result.returncode != 0 and "Traceback" in result.stderr and "campaign=null" in result.stderr


def test_a_defect_of_this_program_is_one_line_and_code_70(monkeypatch, capsys):
    def broken(*arguments: object) -> int:
        return int("x")

    monkeypatch.setattr("driver.plan.print_plan", broken)
    assert main(["plan", "campaign=smoke"]) == 70
    error = capsys.readouterr().err
    assert error.startswith("latdyn: internal error: ValueError: ") and "test_run.py:" in error
    assert len(error.splitlines()) == 1
    with pytest.raises(ValueError, match="invalid literal"):
        main(["plan", "campaign=smoke", "--debug"])


def test_a_finished_campaign_refuses_a_structure_that_changed_since(troubled, tmp_path):
    folder, _ = troubled
    crystals = tmp_path / "crystals"
    shutil.copytree(folder / "crystals", crystals)
    ase.io.write(crystals / "good.cif", bulk("NaCl", "rocksalt", a=5.8))
    changed = [f"materials.structures=[{crystals}]", "materials.on_error=skip", "supercell.matrix=[1,1,1]"]
    for command in ("run", "plan"):
        result = call(["driver", command, f"runs={folder}", *SHORT, "materials=structures", *changed, "name=troubled"])
        assert result.returncode == 2
        assert "material good: archive a cell of 46.298" in result.stderr and len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("command", ["run", "plan"])
def test_a_file_that_is_no_model_is_a_line_and_leaves_no_archive(tmp_path, command):
    (tmp_path / "fake.model").write_text("version https://git-lfs.github.com/spec/v1\n")
    own = ["model=file", f"models.file.path={tmp_path / 'fake.model'}"]
    result = call(["driver", command, f"runs={tmp_path}", *SHORT, *own])
    assert result.returncode == 2
    assert "fake.model" in result.stderr and len(result.stderr.splitlines()) == 1
    assert not (tmp_path / "smoke").exists()


@pytest.fixture
def own_model(tmp_path) -> Path:
    """The demo's weights in a file with another sha256, which nobody has agreed to load."""
    path = tmp_path / "own.model"
    shutil.copy(ROOT / "models/demo/demo.model", path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.comment = b"mine"
    return path


def test_an_own_model_runs_once_it_is_trusted_and_takes_the_place_of_a_wrong_one(tmp_path, own_model):
    wrong = tmp_path / "wrong.model"
    wrong.write_bytes(pickle.dumps({"weights": 1}))
    overrides = [*SHORT, "stages=[relax]", "materials.limit=1", "model=file", "models.file.key=my", f"runs={tmp_path}"]

    def outcome(*arguments: str) -> tuple[int, str]:
        result = call(["driver", *arguments])
        assert "Traceback" not in result.stderr
        return result.returncode, result.stderr

    for command in ("plan", "run"):
        code, text = outcome(command, *overrides, f"models.file.path={own_model}")
        assert code == 2 and text.endswith(f"type: python -m driver models trust {own_model}\n")
        assert len(text.splitlines()) == 1
        code, text = outcome(command, *overrides, f"models.file.path={wrong}", f"models.file.sha256={hash_file(wrong)}")
        assert code == 2 and f"model my ({wrong}) cannot be loaded" in text and len(text.splitlines()) == 1
    assert not (tmp_path / "smoke").exists()
    assert outcome("models", "trust", str(own_model))[0] == 0
    header = Header("smoke", 0, "", physics_of(compose(overrides).settings), {})
    with ArchiveWriter.create(tmp_path / "smoke" / "archive.h5", header) as writer:  # as one that was not checked first
        writer.add_models([ModelRecord("my", "wrong.model", hash_file(wrong))])
    code, text = outcome("run", *overrides, f"models.file.path={own_model}")
    assert code == 0, text
    with open_archive(tmp_path / "smoke" / "archive.h5") as view:
        assert view.models()["my"].sha256 == hash_file(own_model)
    # now there is a result, which is that of this file
    code, text = outcome("run", *overrides, "models.file.path=models/demo/demo.model", "stages=[relax,displace]")
    assert code == 2 and "model my: sha256: archive" in text


def test_plan_counts_what_would_run(tmp_path):
    ten = ["model=demo", "materials.limit=10", "materials.on_error=skip"]
    result = call(["driver", "plan", "campaign=study", *ten, f"runs={tmp_path}"])
    assert result.returncode == 0, result.stderr
    assert "warning: model demo does not know elements of NaPdF3 (F, Pd)" in result.stdout
    assert "10 materials x 1 models" in result.stdout and "140 tasks" in result.stdout
    assert re.search(r"dynamics\s+120\s+120", result.stdout)
    assert not list(tmp_path.iterdir())


def test_help_explains_overrides():
    result = call(["driver", "run", "--help"])
    assert result.returncode == 0
    for word in ("GROUP=PRESET", "KEY=VALUE", "campaign=smoke", "smoke", "mace-mpa-0", "75"):
        assert word in result.stdout


def test_models_are_listed():
    result = call(["driver", "models"])
    assert result.returncode == 0 and re.search(r"demo\s+ready", result.stdout)
    assert "mace-omat-0" in result.stdout


def test_the_folder_of_a_campaign_holds_what_it_says(troubled):
    folder, _ = troubled
    names = {path.name for path in (folder / "troubled").iterdir()}
    assert names >= {"archive.h5", "config.yaml", "driver.log"}
    assert not any("journal" in name for name in names)
    with open_archive(folder / "troubled" / "archive.h5") as view:
        assert view.header.config_yaml == (folder / "troubled" / "config.yaml").read_text()
        assert json.loads(view.header.physics["dynamics.temperature_K"]) == 300.0
        assert {"latdyn", "torch", "mace-torch", "phonopy"} <= view.header.versions.keys()


def test_an_archive_whose_nine_numbers_were_columns_is_not_continued_with_rows(tmp_path):
    """The line says so and how to go on: with the numbers that give the archive's supercell."""
    base = [*SHORT, "materials.formulas=[Cs2NaInCl6]", "stages=[relax]", "relax.mode=none", "name=skewed"]
    typed, same = "supercell.matrix=[1,1,0,0,2,0,0,-1,2]", "supercell.matrix=[1,0,0,1,2,-1,0,0,2]"
    result = run_campaign(tmp_path, *base, typed)
    assert result.returncode == 0, result.stderr
    assert run_campaign(tmp_path, *base, typed).returncode == 0
    archive = tmp_path / "skewed" / "archive.h5"
    with ArchiveWriter.open(archive) as writer, writer.transaction():
        physics = dict(writer.view.header.physics)
        assert physics.pop("supercell.matrix_meaning") == '"rows"'
        group = writer.h5["header"]
        del group["physics"]
        create_dataset(group.id, "physics", json.dumps(physics, indent=1))
        group.attrs["checksum"] = header_checksum(writer.view.header)
    assert verify(archive) == []
    refused = run_campaign(tmp_path, *base, typed)
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert "archive [1, 0, 0, 1, 2, -1, 0, 0, 2] (stored as [1, 1, 0, 0, 2, 0, 0, -1, 2] by a version" in line
    assert "restore them, or set another name=" in line
    resumed = run_campaign(tmp_path, *base, same)
    assert resumed.returncode == 0, resumed.stderr
    assert "nothing left to do" in resumed.stdout
