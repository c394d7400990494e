from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from analysis.__main__ import main

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
