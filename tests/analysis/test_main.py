from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest

from analysis.__main__ import main
from driver.archive.records import StorageError, Structure

ROOT = Path(__file__).parents[2]
COARSE = ["--mesh-length", "20"]


def test_metrics(toy_archive, tmp_path, capsys):
    output = tmp_path / "deep" / "metrics.csv"
    assert main(["metrics", str(toy_archive), "-o", str(output), *COARSE]) == 0
    table = pd.read_csv(output)
    assert len(table) == 8
    assert {"min_frequency_commensurate_THz", "sigma_pooled", "C_V_300K_J_K_mol", "temperature_K"} <= set(table)
    shown = capsys.readouterr().out
    assert "Cs2NaBiCl6" in shown
    assert "undecided" in shown
    assert "does not know Rb" in shown


def test_compare_with_a_model(toy_archive, tmp_path, capsys):
    assert main(["compare", str(toy_archive), "--reference", "model-b", "-o", str(tmp_path / "out"), *COARSE]) == 0
    shown = capsys.readouterr().out
    assert "MAE" in shown
    assert "Note: The reference is another model" in shown
    assert (tmp_path / "out" / "pairs_model-a.csv").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["metrics", "none.h5"], "none.h5: no such archive"),
        (["metrics", "{archive}", "--tolerance", "0.5"], "must be 0 or negative"),
        (["compare", "{archive}", "--reference", "dft.csv", "-o", "x", *COARSE], "neither a file nor a model"),
        (["export", "{archive}", "--material", "No", "--model", "model-a", "--to", "ase", "-o", "x"], "no material"),
    ],
)
def test_errors_are_one_line(toy_archive, arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main([argument.replace("{archive}", str(toy_archive)) for argument in arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("latdyn: ")
    assert error.count("\n") == 1
    assert message in error


PAIR = ["--material", "Cs2NaInCl6", "--model", "model-a"]
COMMANDS = {
    "metrics": ["metrics", *COARSE],
    "compare": ["compare", "--reference", "model-b", *COARSE],
    "report": ["report", *COARSE],
    **{to: ["export", *PAIR, "--to", to] for to in ("phonopy", "h5md", "extxyz", "ase")},
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_no_command_replaces_an_archive(toy_archive, tmp_path, command, overwrite, capsys):
    archive, other = (Path(shutil.copy(toy_archive, tmp_path / name)) for name in ("archive.h5", "other.h5"))
    before = archive.read_bytes()
    (tmp_path / "link.h5").symlink_to(archive)
    (tmp_path / "hard.yaml").hardlink_to(archive)
    names = ["archive.h5", "other.h5", "link.h5", "hard.yaml", "archive.h5.journal", "archive.h5.lock", "other.h5.lock"]
    for name in names:
        verb, *options = COMMANDS[command]
        assert main([verb, str(archive), *options, "-o", str(tmp_path / name), *overwrite]) == 2
        error = capsys.readouterr().err
        assert error.startswith("latdyn: ") and error.count("\n") == 1
    assert archive.read_bytes() == other.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"archive.h5", "other.h5", "link.h5", "hard.yaml"}


@pytest.mark.parametrize("command", COMMANDS)
def test_files_of_others_stay(toy_archive, tmp_path, command, capsys):
    """Of one's own, the outputs that can be recognised are replaced, so that a command may be typed again."""
    mine = tmp_path / ("mine.json" if command not in ("compare", "report") else "mine")
    if mine.suffix:
        mine.write_text("my thesis")
    else:
        mine.mkdir()
        (mine / "index.html").write_text("my thesis")
    name, *options = COMMANDS[command]
    assert main([name, str(toy_archive), *options, "-o", str(mine)]) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert (mine if mine.suffix else mine / "index.html").read_text() == "my thesis"
    own = tmp_path / ("own.json" if mine.suffix else "own")
    assert main([name, str(toy_archive), *options, "-o", str(own)]) == 0
    assert main([name, str(toy_archive), *options, "-o", str(own)]) == (2 if command in ("extxyz", "ase") else 0)
    assert main([name, str(toy_archive), *options, "-o", str(own), "--overwrite"]) == 0


def test_a_metrics_table_with_columns_of_ones_own_is_not_replaced(toy_archive, tmp_path):
    path = tmp_path / "metrics.csv"
    assert main(["metrics", str(toy_archive), "-o", str(path), *COARSE]) == 0
    pd.read_csv(path).assign(mine=1).to_csv(path, index=False)
    assert main(["metrics", str(toy_archive), "-o", str(path), *COARSE]) == 2
    assert "mine" in pd.read_csv(path)


@pytest.mark.parametrize("processes", ["1", "2"])
def test_damage_is_named_and_has_an_exit_code(toy_archive, tmp_path, processes, capsys):
    path = Path(shutil.copy(toy_archive, tmp_path / "archive.h5"))
    with h5py.File(path, "r+") as plain:
        plain["materials/Cs2NaInCl6/model-a/dynamics/replica_0/particles/all/force/value"][3] += 1
    damage = "Cs2NaInCl6 / model-a / dynamics segment 0: what is stored does not have its checksum"
    for command in ("metrics", "report", "compare"):
        name, *options = COMMANDS[command]
        out = str(tmp_path / command)
        assert main([name, str(path), *options, "-o", out, "--processes", processes]) == 1
        assert f"latdyn: damaged, and left out: {damage}\n" in capsys.readouterr().err
    for to in ("h5md", "extxyz"):
        assert main(["export", str(path), *PAIR, "--to", to, "-o", str(tmp_path / to)]) == 2
        assert damage in capsys.readouterr().err
        assert not (tmp_path / to).exists()


def test_damage_that_concerns_no_pair(toy_archive, tmp_path, capsys):
    path = Path(shutil.copy(toy_archive, tmp_path / "archive.h5"))
    with h5py.File(path, "r+") as plain:
        plain["header"].attrs["seed"] = 8
    assert main(["metrics", str(path), *COARSE]) == 1
    assert "damaged, and left out: header: it does not have its checksum" in capsys.readouterr().err


def test_ctrl_c_is_called_so(toy_archive, monkeypatch, capsys):
    def pressed(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("analysis.reduce.reduce_archive", pressed)
    assert main(["metrics", str(toy_archive)]) == 75
    assert capsys.readouterr().err == "latdyn: ended by Ctrl-C; every output is whole, or as it was before\n"


@pytest.mark.parametrize("wait_s", [0.5, 1.5, 4.0])
def test_ctrl_c_at_any_time(toy_archive, tmp_path, wait_s):
    """As a terminal sends it: to the command and all processes that it has started."""
    process = subprocess.Popen(
        [sys.executable, "-m", "analysis", "metrics", str(toy_archive), "--processes", "2", "-o", str(tmp_path / "x")],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    time.sleep(wait_s)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=120)
    if process.returncode == -signal.SIGINT:
        pytest.skip("Python itself had not started yet")
    if process.returncode == 75:
        assert error == "latdyn: ended by Ctrl-C; every output is whole, or as it was before\n"
        assert list(tmp_path.iterdir()) == []
    else:
        assert (process.returncode, error) == (0, "")


def test_other_errors_are_one_line_too(toy_archive, monkeypatch, capsys):
    for error, code, text in (
        (ZeroDivisionError("x\ny"), 70, "latdyn: internal error, ZeroDivisionError: x y; --debug shows where\n"),
        (PermissionError(13, "Permission denied", "/x"), 2, "latdyn: /x: Permission denied\n"),
        (StorageError("full"), 75, "latdyn: full\n"),
    ):

        def broken(*args, error=error, **options):
            raise error

        monkeypatch.setattr("analysis.reduce.reduce_archive", broken)
        assert main(["metrics", str(toy_archive)]) == code
        assert capsys.readouterr().err == text


def test_warnings_of_libraries_do_not_reach_the_user(builder, make_springs):
    """Phonopy warns of meshes that do not fit the symmetry of a body-centred orthorhombic cell."""
    cell = 0.5 * np.array([[-1.0, 1, 1], [1, -1, 1], [1, 1, -1]]) * [4.0, 5.0, 6.5]
    crystal = make_springs(Structure(np.array([55, 17]), np.array([[0, 0, 0], [2.0, 2.5, 0.0]]), cell))
    builder.add_models("m")
    for key in ("CsCl", "CsBr"):
        builder.add_material(key, crystal.constants.unitcell, "", "CsCl")
        builder.add_all(key, "m", crystal, segments=2)
    command = ["-m", "analysis", "metrics", str(builder.path), "--mesh-length", "40"]
    run = functools.partial(subprocess.run, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "MeshSymmetryFallbackWarning" in run([sys.executable, "-W", "default", *command]).stderr
    for processes in ("1", "2"):
        assert run([sys.executable, *command, "--processes", processes]).stderr == ""


def test_exit_codes_are_documented(capsys):
    for command in ([], ["metrics"], ["compare"], ["report"], ["export"]):
        with pytest.raises(SystemExit):
            main([*command, "--help"])
        shown = capsys.readouterr().out
        assert all(f"{code} " in shown[shown.index("Exit codes:") :] for code in (0, 1, 2, 70, 75))


def test_debug_shows_the_traceback(tmp_path):
    with pytest.raises(Exception, match="no such archive"):
        main(["metrics", str(tmp_path / "none.h5"), "--debug"])


BLOCKED = """
import importlib.abc, sys
class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name.split(".")[0] in ("torch", "mace", "mpi4py", "hydra", "omegaconf", "e3nn"):
            raise ImportError(f"{name} is not installed")
sys.meta_path.insert(0, Blocked())
from analysis.__main__ import main
archive, out = sys.argv[1:]
pair = ["--material", "Cs2AgBiBr6", "--model", "model-a"]
for arguments in (
    ["metrics", archive, "-o", f"{out}/metrics.csv", "--mesh-length", "20"],
    ["compare", archive, "--reference", "model-b", "-o", f"{out}/compare", "--mesh-length", "20"],
    ["report", archive, "-o", f"{out}/report", "--mesh-length", "20"],
    *(["export", archive, *pair, "--to", to, "-o", f"{out}/{name}"] for to, name in (
        ("phonopy", "phonopy"), ("h5md", "run.h5"), ("extxyz", "run.xyz"), ("ase", "relaxed.traj"))),
):
    assert main(arguments) == 0, arguments
"""


def test_every_command_without_what_runs_campaigns(builder, stable_crystal, tmp_path):
    """No torch, mace, mpi4py or hydra on the machine: as on a laptop with the bare install."""
    builder.add_models("model-a", "model-b")
    builder.add_material("Cs2AgBiBr6", stable_crystal.constants.unitcell)
    for model in ("model-a", "model-b"):
        builder.add_all("Cs2AgBiBr6", model, stable_crystal, segments=2, quartic=60.0)
    done = subprocess.run(
        [sys.executable, "-c", BLOCKED, str(builder.path), str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report" / "index.html").is_file()
    assert (tmp_path / "run.h5").is_file()
