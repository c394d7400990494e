"""The analysis in an environment that really lacks torch, MACE, mpi4py and Hydra (tests/run.sh makes one)."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYTHON = os.environ.get("LATDYN_BARE_PYTHON", "")

pytestmark = pytest.mark.skipif(not PYTHON, reason="LATDYN_BARE_PYTHON names no bare environment; tests/run.sh sets it")


def bare(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([PYTHON, *arguments], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("name", ["torch", "mace", "mpi4py", "hydra", "e3nn"])
def test_it_is_bare(name):
    assert bare("-c", f"import {name}").returncode != 0


def test_imports():
    result = bare("-c", "import analysis, driver.archive.reader, driver.structures.materials")
    assert result.returncode == 0, result.stderr


def test_every_command_runs(toy_archive, tmp_path):
    archive, material, model = toy_archive, "Cs2NaInCl6", "model-a"
    commands = [
        ("metrics", str(archive), "-o", str(tmp_path / "metrics.csv")),
        ("report", str(archive), "-o", str(tmp_path / "report")),
        ("compare", str(archive), "--reference", str(tmp_path / "reference.csv"), "-o", str(tmp_path / "comparison")),
        *(
            (
                "export",
                str(archive),
                "--material",
                material,
                "--model",
                model,
                "--to",
                to,
                "-o",
                str(tmp_path / name),
            )
            for to, name in (("phonopy", "p.yaml"), ("h5md", "t.h5"), ("extxyz", "t.extxyz"), ("ase", "r.traj"))
        ),
    ]
    (tmp_path / "reference.csv").write_text(f"formula,sigma_300K\n{material},0.4\nCs2AgBiBr6,0.3\n")
    for command in commands:
        result = bare("-m", "analysis", *command)
        assert result.returncode == 0, f"{command}: {result.stderr}"
    for command in (("status", str(archive)), ("verify", str(archive))):
        result = bare("-m", "driver", *command)
        assert result.returncode == 0, f"{command}: {result.stderr}"
