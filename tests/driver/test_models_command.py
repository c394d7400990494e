"""The command `models`, as it is typed."""

from __future__ import annotations

import contextlib
import os
import pty
import subprocess
import sys
from pathlib import Path

from driver.models import PROJECT_ROOT

COMMAND = (sys.executable, "-m", "driver", "models")


def start(cache: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    return models("prepare", *arguments, cache=cache, **environment)


def models(*arguments: str, cache: Path, **environment: str) -> subprocess.Popen[str]:
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


def outcome(*arguments: str, cache: Path, **environment: str) -> tuple[int, str, str]:
    process = models(*arguments, cache=cache, LATDYN_TRUST=str(cache / "trust"), **environment)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def test_licences_are_shown_and_must_be_accepted(tmp_path: Path) -> None:
    code, out, _ = outcome("list", cache=tmp_path, COLUMNS="160")
    assert code == 0 and "ASL, not accepted" in out and "https://github.com/gabor1/ASL" in out
    for wrong in ((), ("--accept-licence", "MIT")):
        code, out, err = outcome("fetch", "mace-omat-0", *wrong, cache=tmp_path)
        assert code == 2 and out == ""
        assert "licence ASL (https://github.com/gabor1/ASL)" in err and err.endswith("--accept-licence ASL\n")
        assert len(err.splitlines()) == 1
    path = tmp_path / "models" / "mace-omat-0-medium.model"
    path.parent.mkdir()
    path.write_bytes(b"\x80\x02copied by hand")
    code, _, err = outcome("fetch", "mace-omat-0", "--accept-licence", "ASL", cache=tmp_path)
    assert code == 2 and f"type: python -m driver models trust {path}" in err and len(err.splitlines()) == 1
    assert "ASL, accepted 20" in outcome("list", cache=tmp_path, COLUMNS="160")[1]
    code, out, err = outcome("trust", str(path), cache=tmp_path)
    assert code == 0 and str(tmp_path / "trust") in out, err
    code, out, err = outcome("fetch", "mace-omat-0", cache=tmp_path)
    assert code == 0 and out.endswith("licence ASL\n"), err


def test_on_a_terminal_the_licence_is_asked_for(tmp_path: Path) -> None:
    """What is typed decides; nothing listens at the address, so that the download then fails."""
    for answer, message in ((b"n\n", b"--accept-licence ASL"), (b"y\n", b"cannot download")):
        master, slave = pty.openpty()
        process = subprocess.Popen(
            [*COMMAND, "fetch", "mace-omat-0"],
            cwd=PROJECT_ROOT,
            env={
                **os.environ,
                "LATDYN_TRUST": str(tmp_path / "trust"),
                "LATDYN_MODELS": str(tmp_path),
                "https_proxy": "http://127.0.0.1:9",
            },
            stdin=slave,
            stdout=slave,
            stderr=slave,
        )
        os.close(slave)
        os.write(master, answer)
        shown = b""
        with contextlib.suppress(OSError):  # the end of a terminal
            while piece := os.read(master, 4096):
                shown += piece
        os.close(master)
        assert process.wait(timeout=120) == 2
        assert b"Do you accept the terms of ASL? [y/N]" in shown
        assert message in shown
    assert (tmp_path / "trust" / "licences" / "ASL.json").is_file()


def test_trust_refuses_what_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "text.model").write_text("text")
    for arguments, message in (
        ((), "name the files"),
        ((str(tmp_path / "text.model"),), "is not a model: it begins with 'text'"),
        ((str(tmp_path / "none.model"),), "no such file"),
        ((str(tmp_path),), "is a folder"),
    ):
        code, _, err = outcome("trust", *arguments, cache=tmp_path)
        assert code == 2 and message in err and len(err.splitlines()) == 1
