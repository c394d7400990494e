"""The same campaign alone, with 2, 3 and 4 ranks, and interrupted: the same tasks, the same numbers."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from campaigns import SHORT, call, run_campaign, start

from driver.archive.reader import open_archive
from driver.archive.records import ArchiveError, TaskKey
from driver.archive.verify import verify

pytestmark = pytest.mark.mpi


def done(archive: Path) -> set[TaskKey]:
    with open_archive(archive) as view:
        return {key for key, state in view.task_states().items() if state.status == "done"}


def metrics(archive: Path) -> pd.DataFrame:
    table = archive.with_name("metrics.csv")
    result = call(["analysis", "metrics", str(archive), "-o", str(table)])
    assert result.returncode == 0, result.stderr
    return pd.read_csv(table)


def assert_same_campaign(archive: Path, reference: Path) -> None:
    """Same committed tasks; relaxation and forces to rounding, sigma within 1e-3."""
    assert verify(archive) == []
    assert done(archive) == done(reference)
    with open_archive(archive) as view, open_archive(reference) as expected:
        for key in expected.materials():
            for stage, path in (("relax", "positions"), ("relax", "cell"), ("displace", "d0.0100/forces")):
                ours, theirs = view.read(key, "demo", stage, path), expected.read(key, "demo", stage, path)
                np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-10)
    ours, theirs = metrics(archive), metrics(reference)
    assert list(ours.columns) == list(theirs.columns)
    for column in theirs.select_dtypes("number").columns:
        if column.startswith(("sigma", "temperature")):
            np.testing.assert_allclose(ours[column], theirs[column], atol=1e-3, rtol=1e-3)
        elif column.endswith(("_THz", "_A", "_A3", "_eV")):
            np.testing.assert_allclose(ours[column], theirs[column], atol=1e-7, rtol=1e-8, err_msg=column)


@pytest.fixture(scope="module")
def serial(tmp_path_factory) -> Path:
    """The campaign run alone, without MPI."""
    folder = tmp_path_factory.mktemp("serial")
    result = run_campaign(folder, *SHORT)
    assert result.returncode == 0, result.stderr
    return folder / "smoke" / "archive.h5"


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_ranks_change_nothing(tmp_path, serial, ranks):
    result = run_campaign(tmp_path, *SHORT, ranks=ranks)
    assert result.returncode == 0, result.stderr
    assert_same_campaign(tmp_path / "smoke" / "archive.h5", serial)


def wait_for(archive: Path, tasks: int, timeout_s: float = 120.0) -> None:
    """Wait until so many tasks are committed and a master is at work."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        with contextlib.suppress(ArchiveError, FileNotFoundError):  # not created yet
            if len(done(archive)) >= tasks and Path(f"/proc/{master_pid(archive)}").exists():
                return
        time.sleep(0.05)
    pytest.fail(f"{tasks} tasks were not committed within {timeout_s} s")


def master_pid(archive: Path) -> int:
    """The process that holds the writer's lock."""
    lock = archive.with_name(archive.name + ".lock")
    return int(json.loads(lock.read_text())["pid"])


def test_interrupted_at_three_places_and_resumed(tmp_path, serial):
    """SIGTERM to rank 0 after 1 and 4 committed tasks, SIGUSR1 to mpirun after 7: exit 75 each time, then 0."""
    archive = tmp_path / "smoke" / "archive.h5"
    committed: set[TaskKey] = set()
    for tasks, whom in ((1, "rank 0"), (4, "rank 0"), (7, "mpirun")):
        process = start(["driver", "run", f"runs={tmp_path}", *SHORT, "execution.grace_s=0"], ranks=3)
        wait_for(archive, tasks)
        if whom == "rank 0":
            os.kill(master_pid(archive), signal.SIGTERM)
        else:
            process.send_signal(signal.SIGUSR1)
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 75, output
        assert "run the same command again" in output
        now = done(archive)
        assert committed <= now and len(now) >= tasks and verify(archive) == []
        committed = now
    result = run_campaign(tmp_path, *SHORT, ranks=3)
    assert result.returncode == 0, result.stderr
    assert_same_campaign(archive, serial)


def test_nothing_left_leaves_the_archive_untouched(serial):
    before = (serial.stat().st_mtime_ns, serial.read_bytes())
    result = run_campaign(serial.parents[1], *SHORT, ranks=3)
    assert result.returncode == 0 and "nothing left to do" in result.stdout
    assert (serial.stat().st_mtime_ns, serial.read_bytes()) == before


def test_wrong_settings_end_all_ranks_with_one_line(serial):
    result = run_campaign(serial.parents[1], *SHORT, "dynamics.temperature_K=400", ranks=3)
    assert result.returncode == 2
    lines = [line for line in result.stderr.splitlines() if line.startswith("latdyn:")]
    assert len(lines) == 1 and "dynamics.temperature_K: archive 300.0, now 400.0" in lines[0]
    assert "Traceback" not in result.stderr


def test_a_rank_without_its_device_ends_the_run_with_the_reason(tmp_path):
    """It must not leave the others waiting."""
    result = run_campaign(tmp_path, *SHORT, "execution.device=cuda:7", ranks=3)
    assert result.returncode == 2
    assert "latdyn: rank 1: execution.device=cuda:7: this rank sees 0 GPUs and needs number 7" in result.stderr.replace(
        "rank 2:", "rank 1:"
    )
