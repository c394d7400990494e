"""`status`, `verify`, `metrics` and the Python reader while a campaign writes: whole commits, and no one waits."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from archive_samples import campaign, new_archive

from driver.archive.verify import verify

ROOT = Path(__file__).parents[2]
SEGMENTS = 30
COMMITS = campaign(("A", "B", "C"), SEGMENTS)

LOCKLESS = """
import runpy, sys
from driver.archive.storage import Storage
Storage.lock = lambda self, descriptor, *, exclusive: None
module, *sys.argv[1:] = sys.argv[1:]
runpy.run_module(module, run_name="__main__", alter_sys=True)
"""
"""Any of the commands on a file system without locks."""


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "160"}


def command(locks: str, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    start = ["-m"] if locks == "yes" else ["-c", LOCKLESS]
    return subprocess.run(
        [sys.executable, *start, module, *arguments], env=environment(), capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("locks", ["yes", "no"])
def test_commands_while_a_campaign_writes(tmp_path: Path, locks: str) -> None:
    path = tmp_path / "archive.h5"
    new_archive(path, ("A", "B", "C")).close()
    script = str(ROOT / "tests" / "helpers" / "busy_writer.py")
    options = [str(path), str(SEGMENTS), "--pause", "0.12", f"--locks={locks}", "--wait"]
    done: list[int] = []
    with subprocess.Popen(
        [sys.executable, script, *options],
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as writer:
        assert writer.stdin is not None and writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        writer.stdin.write("go\n")
        writer.stdin.flush()
        while writer.poll() is None:
            status = command(locks, "driver", "status", "--done", str(path))
            assert status.returncode == 0, status.stderr
            done.append(int(status.stdout))
            checked = command(locks, "driver", "verify", str(path))
            assert checked.returncode == 0, checked.stdout + checked.stderr
            done.append(int(re.search(r"(\d+) tasks checked, 0 things wrong", checked.stdout)[1]))
            metrics = command(locks, "analysis", "metrics", str(path), "-o", str(tmp_path / "metrics.csv"))
            assert metrics.returncode == 0, metrics.stderr
            assert len((tmp_path / "metrics.csv").read_text().splitlines()) == 1 + 3 * 2
            assert "damaged" not in (tmp_path / "metrics.csv").read_text()
        assert writer.stdout.read().endswith("finished\n")
    assert done == sorted(done)
    assert len(set(done)) > 2
    assert verify(path) == []
