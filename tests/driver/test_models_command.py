"""The command `models prepare`, as it is typed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from driver.models import PROJECT_ROOT

COMMAND = (sys.executable, "-m", "driver", "models", "prepare")


def start(cache: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *arguments],
        cwd=PROJECT_ROOT,
        env={**os.environ, "LATDYN_CACHE": str(cache), "LATDYN_MODELS": str(cache / "models"), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_many_at_once_prepare_a_model_once(tmp_path: Path) -> None:
    processes = [start(tmp_path, "demo") for _ in range(3)]
    for process in processes:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        assert "demo: ready for symmetrix in float32" in out
        assert str(tmp_path) in out
    assert len(list(tmp_path.glob("extracted/*/model.json"))) == 1
    assert not list(tmp_path.rglob("*.part"))
    code = sorted(tmp_path.rglob("*.so"))
    before = [path.stat().st_mtime_ns for path in code]
    assert code
    out, err = start(tmp_path, "demo").communicate(timeout=300)
    assert "demo: ready" in out, err
    assert sorted(tmp_path.rglob("*.so")) == code
    assert [path.stat().st_mtime_ns for path in code] == before  # loaded, not made again


def test_a_machine_without_a_compiler_is_told_so(tmp_path: Path) -> None:
    out, err = start(tmp_path, "demo", PATH="/nonexistent", CXX="/nonexistent/c++").communicate(timeout=300)
    assert "demo: will run with torch: symmetrix-xl" in out, err
    assert not list(tmp_path.rglob("*.so"))
    assert not list(tmp_path.rglob("*.part"))


def test_refuses_what_it_cannot_find(tmp_path: Path) -> None:
    for arguments, message in (
        ((), "name the models to prepare; there is demo"),
        (("nix",), "no model 'nix'"),
        (("mace-mpa-0",), "python -m driver models fetch mace-mpa-0"),
    ):
        process = start(tmp_path, *arguments)
        _, err = process.communicate(timeout=300)
        assert process.returncode == 2
        assert message in err
        assert len(err.splitlines()) == 1
