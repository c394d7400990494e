"""The commands `verify` and `merge`."""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import pytest
from archive_samples import HEADER, attempt, campaign, dynamics_result, new_archive, relax_result
from damage import address_of, flip
from rich.console import Console

from driver import maintenance
from driver.__main__ import main
from driver.archive.reader import open_archive
from driver.archive.verify import verify
from driver.archive.writer import ArchiveWriter

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "archive.h5"
    with new_archive(path) as writer:
        for commit in campaign(segments=3):
            writer.commit(commit)
    return path


def damage(archive: Path) -> None:
    with h5py.File(archive, "r+") as plain:
        plain["materials/A/m/dynamics/replica_0/particles/all/force/value"][7] += 1


def test_an_intact_archive(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(archive)]) == 0
    assert capsys.readouterr().out == f"{archive}: 10 tasks checked, 0 things wrong\n"
    assert main(["verify", "--drop", str(archive)]) == 0


def test_damage_is_named_and_dropped(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage(archive)
    assert main(["verify", str(archive)]) == 1
    out = capsys.readouterr().out
    assert out.startswith("A / m / dynamics segment 1: what is stored does not have its checksum\n")
    assert "`verify --drop`" in out
    assert main(["verify", "--drop", str(archive)]) == 0
    out = capsys.readouterr().out
    assert "dropped A / m / dynamics segment 1\ndropped A / m / dynamics segment 2\n2 tasks dropped" in out
    assert main(["verify", str(archive)]) == 0
    assert "8 tasks checked, 0 things wrong" in capsys.readouterr().out


def test_a_damaged_structure_and_header(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with h5py.File(archive, "r+") as plain:
        plain["header"].attrs["seed"] = 8
    flip(archive, address_of(archive, "materials/A/structure") + 20)
    assert main(["verify", "--drop", str(archive)]) == 1
    out = capsys.readouterr().out
    assert "structures for the next run to write again: A\n" in out
    assert "this cannot be computed again: header: it does not have its checksum; go back to a copy" in out


def test_drop_is_refused_while_a_campaign_writes(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ArchiveWriter.open(archive):
        assert main(["verify", str(archive)]) == 0
        assert main(["verify", "--drop", str(archive)]) == 2
    assert "is being written by process" in capsys.readouterr().err


def test_progress_on_a_terminal(archive: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(maintenance, "Console", lambda stderr: Console(file=screen, force_terminal=True, width=100))
    assert main(["verify", str(archive)]) == 0
    assert "checking" in screen.getvalue() and "10/10" in screen.getvalue()


def test_no_progress_elsewhere(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(archive)]) == 0
    assert capsys.readouterr().err == ""


def test_merge(archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other, merged = tmp_path / "b.h5", tmp_path / "c.h5"
    shutil.copy(archive, other)
    damage(archive)
    with ArchiveWriter.open(other) as writer:
        writer.commit([attempt(dynamics_result("B", "m", 3)), attempt(relax_result("A", "n"))])
    assert main(["merge", str(archive), str(other), "-o", str(merged)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{merged}: 12 tasks done, 0 to retry, 0 quarantined, from 2 archives\n")
    assert f"damaged in {archive}, left out: A / m / dynamics segment 1\n" in out
    assert verify(merged) == []
    with open_archive(merged) as view:
        assert view.header.campaign == HEADER.campaign


def test_merge_says_what_differs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = []
    for number, name in enumerate("ab"):
        paths.append(tmp_path / f"{name}.h5")
        with new_archive(paths[-1]) as writer:
            writer.commit([attempt(relax_result("A", "m", number))])
            if name == "b":
                writer.commit([attempt(dynamics_result("A", "m", 0))])
    assert main(["merge", *map(str, paths), "-o", str(tmp_path / "c.h5")]) == 0
    assert "1 task done more than once with results that are not equal; one is taken: A / m / relax" in (
        capsys.readouterr().out
    )


def test_merging_what_does_not_belong_together(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["merge", str(archive), "-o", str(archive)]) == 2
    assert capsys.readouterr().err == f"latdyn: {archive} exists already: choose another name\n"


def test_verify_does_not_recommend_itself(archive: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flip(archive, address_of(archive, "materials/A/m/dynamics") + 20)
    assert main(["verify", str(archive)]) == 1
    out = capsys.readouterr().out
    assert "A / m / dynamics segment 0: it cannot be read (" in out
    assert "driver verify" not in out
    archive.write_bytes(archive.read_bytes()[:3000])
    for options in ([], ["--drop"]):
        assert main(["verify", *options, str(archive)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        assert "verify`" not in error
        assert error.endswith("nothing of it can be checked: go back to a copy\n")
    assert main(["status", str(archive)]) == 2
    assert "`python -m driver verify` names what is damaged" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["verify", "merge"])
def test_ctrl_c_is_one_line(
    archive: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    def pressed(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(maintenance, command, pressed)
    arguments = [str(archive)] if command == "verify" else [str(archive), "-o", str(archive.with_name("b.h5"))]
    assert main([command, *arguments]) == 75
    assert capsys.readouterr().err == "latdyn: ended by Ctrl-C; the same command begins anew\n"


def test_merge_replaces_nothing(archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither the names of an archive's files, nor a link that leads nowhere, nor what lies where it works."""
    before = archive.read_bytes()
    (tmp_path / "link.h5").symlink_to("nowhere")
    (tmp_path / "c.h5.part").write_text("mine")
    for name in ("archive.h5.journal", "archive.h5.lock", "link.h5", "c.h5", "archive.h5/c.h5"):
        assert main(["merge", str(archive), "-o", str(tmp_path / name)]) == 2, name
        error = capsys.readouterr().err
        assert error.startswith("latdyn: ") and error.count("\n") == 1
    assert archive.read_bytes() == before
    assert (tmp_path / "c.h5.part").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"archive.h5", "link.h5", "c.h5.part"}
    assert main(["merge", str(archive), "-o", "/proc/nowhere/c.h5"]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_ctrl_c_in_the_processes_of_verify(archive: Path) -> None:
    """As a terminal sends it, to all of them: only the one that was called shows it."""
    command = "from driver.archive.verify import verify; import driver.archive.verify as v; v.BATCH = 1"
    command += f"; print('now', flush=True); [verify({str(archive)!r}, workers=2) for _ in range(1000)]"
    process = subprocess.Popen(
        [sys.executable, "-c", command],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(1.5)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert error.count("Traceback") == 1  # the caller's
    assert "SpawnProcess" not in error
