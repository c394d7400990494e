"""The quick start with crystals of one's own, from another folder, as typed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import ase.io
import pytest
from ase.build import bulk
from campaigns import ROOT

from driver.archive.reader import open_archive

pytestmark = pytest.mark.mpi


@pytest.mark.skipif(not (ROOT / ".venv" / ".latdyn").exists(), reason="needs the environment that tests/run.sh makes")
def test_ones_own_crystals_through_the_quick_start(tmp_path):
    """The folder has an `analysis` of its own, which must not be taken for Latdyn's."""
    (tmp_path / "crystals").mkdir()
    (tmp_path / "analysis").mkdir()
    (tmp_path / "analysis" / "__init__.py").write_text("raise RuntimeError('not this one')\n")
    ase.io.write(tmp_path / "crystals" / "NaCl.cif", bulk("NaCl", "rocksalt", a=5.6))
    ase.io.write(tmp_path / "crystals" / "CsBr.extxyz", bulk("CsBr", "cesiumchloride", a=4.3))
    brief = (
        "name=mine materials=structures materials.structures=[crystals/*] model=demo supercell.matrix=[1,1,1] "
        "relax.mode=none engine.evaluator=torch dynamics.equilibration_ps=0 dynamics.production_ps=0.01 "
        "dynamics.segment_ps=0.01 dynamics.temperature_K=350"
    )
    result = subprocess.run(
        ["bash", str(ROOT / "jobs" / "local.sh"), *brief.split()],
        cwd=tmp_path,
        env={**os.environ, "WORKERS": "2"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    folder: Path = tmp_path / "runs" / "mine"
    assert (folder / "report" / "index.html").exists()
    with open_archive(folder / "archive.h5") as view:
        assert set(view.material_keys()) == {"NaCl", "CsBr"}
        assert {state.status for state in view.task_states().values()} == {"done"}
        assert view.header.physics["dynamics.friction_per_ps"] == "10.0"
