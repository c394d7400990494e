"""A campaign on a disk that is full: exit code 75 and one clear line; with room again the same command finishes."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from campaigns import SHORT, run_campaign

from driver.archive.reader import open_archive
from driver.archive.verify import verify


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("needs the right to mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def fill(folder: Path, leave: int) -> None:
    """Leave so many bytes free."""
    state = os.statvfs(folder)
    (folder / "filler").write_bytes(bytes(max(0, state.f_bavail * state.f_frsize - leave)))


def clear_line(process: subprocess.CompletedProcess[str], archive: Path) -> str:
    """The one line that says what is wrong."""
    assert "Traceback" not in process.stderr and "Logging error" not in process.stderr, process.stderr
    lines = [line for line in process.stderr.splitlines() if line.startswith("latdyn: ") and "warning:" not in line]
    assert len(lines) == 1, process.stderr
    return lines[0]


@pytest.mark.parametrize("leave", [0, 1_500_000])
def test_run_on_a_full_disk(disk: Path, leave: int) -> None:
    archive = disk / "smoke" / "archive.h5"
    fill(disk, leave)
    full = run_campaign(disk, *SHORT)
    assert full.returncode == 75, full.stdout + full.stderr
    assert "no space left" in clear_line(full, archive).lower()
    done = 0
    if archive.exists():
        assert verify(archive) == []
        with open_archive(archive) as view:
            done = sum(state.status == "done" for state in view.task_states().values())
    (disk / "filler").unlink()
    again = run_campaign(disk, *SHORT)
    assert again.returncode == 0, again.stdout + again.stderr
    assert verify(archive) == []
    with open_archive(archive) as view:
        assert sum(state.status == "done" for state in view.task_states().values()) > done


def test_run_on_a_read_only_file_system(disk: Path) -> None:
    """Wrong usage: waiting does not help."""
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    process = run_campaign(disk, *SHORT)
    assert process.returncode == 2, process.stdout + process.stderr
    assert "read-only file system" in clear_line(process, disk).lower()
