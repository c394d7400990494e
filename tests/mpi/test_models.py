"""A model file of the user's own under mpirun."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

import pytest
from campaigns import ROOT, SHORT, call, run_campaign

from driver.archive.reader import open_archive

pytestmark = pytest.mark.mpi


def test_runs_once_it_is_trusted(tmp_path: Path) -> None:
    own = tmp_path / "own.model"
    shutil.copy(ROOT / "models/demo/demo.model", own)
    with zipfile.ZipFile(own, "a") as archive:
        archive.comment = b"under mpirun"
    overrides = [*SHORT, "stages=[relax]", "model=file", f"models.file.path={own}", "models.file.key=my"]
    result = run_campaign(tmp_path, *overrides, ranks=3)
    assert result.returncode == 2
    assert [line for line in result.stderr.splitlines() if line.startswith("latdyn:")] == [
        line for line in result.stderr.splitlines() if line.endswith(f"python -m driver models trust {own}")
    ]
    assert result.stderr.count("latdyn:") == 1 and "Traceback" not in result.stderr
    assert not (tmp_path / "smoke").exists()
    assert call(["driver", "models", "trust", str(own)]).returncode == 0
    result = run_campaign(tmp_path, *overrides, ranks=3)
    assert result.returncode == 0, result.stderr
    with open_archive(tmp_path / "smoke" / "archive.h5") as view:
        assert {key.model for key, state in view.task_states().items() if state.status == "done"} == {"my"}
