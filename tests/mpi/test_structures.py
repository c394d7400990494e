"""Materials from files under real ranks: ASE's readers would take all ranks for one reader."""

from __future__ import annotations

from pathlib import Path

import ase.db
import ase.io
import pytest
from ase.build import bulk
from campaigns import run_campaign

from driver.archive.reader import open_archive

pytestmark = pytest.mark.mpi

BRIEF = (
    "execution.device=cpu",
    "execution.threads=1",
    "model=demo",
    "engine.evaluator=torch",
    "supercell.matrix=[1,1,1]",
    "relax.mode=none",
    "dynamics.equilibration_ps=0",
    "dynamics.production_ps=0.01",
    "dynamics.segment_ps=0.01",
)
"""One evaluation and five steps of each crystal."""


@pytest.fixture
def crystals(tmp_path) -> Path:
    """One crystal of the demo model's elements in each of the formats that are read in ways of their own."""
    folder = tmp_path / "my crystals"
    (folder / "sub" / "AgCl").mkdir(parents=True)
    ase.io.write(folder / "NaCl.cif", bulk("NaCl", "rocksalt", a=5.6))
    ase.io.write(folder / "sub" / "AgCl" / "POSCAR", bulk("AgCl", "rocksalt", a=5.5), format="vasp")
    ase.io.write(folder / "pair.extxyz", [bulk("NaBr", "rocksalt", a=5.9), bulk("AgBr", "rocksalt", a=5.8)])
    with ase.db.connect(folder / "sub" / "set.db") as database:
        database.write(bulk("CsCl", "cesiumchloride", a=4.1), key="CsCl")
        database.write(bulk("CsBr", "cesiumchloride", a=4.3), key="CsBr")
    return folder


def test_files_of_every_kind_under_mpirun(tmp_path, crystals):
    """A folder, a glob across folders, and single files."""
    files = f"{crystals},{crystals}/**/POSCAR,{crystals}/sub/set.db"
    result = run_campaign(
        tmp_path, *BRIEF, "name=kinds", "materials=structures", f"materials.structures=[{files}]", ranks=3
    )
    assert result.returncode == 0, result.stderr
    with open_archive(tmp_path / "kinds" / "archive.h5") as view:
        assert set(view.material_keys()) == {"NaCl", "AgCl", "pair-0", "pair-1", "CsCl", "CsBr"}
        assert {state.status for state in view.task_states().values()} == {"done"}
