"""Ranks that die or hang under the real mpirun: the campaign goes on with the rest, and nothing committed is lost."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from campaigns import ROOT, environment, mpirun

from driver.archive.reader import open_archive
from driver.archive.records import ArchiveError, TaskKey, TaskState
from driver.archive.verify import verify

pytestmark = pytest.mark.mpi

SCRIPT = str(ROOT / "tests" / "helpers" / "toy_mpi.py")
FAULT_TOLERANT = ("--with-ft", "ulfm")


def launch(
    archive: Path, *options: str, ranks: int = 4, mpi: tuple[str, ...] = FAULT_TOLERANT
) -> subprocess.Popen[str]:
    """Start a campaign of made-up tasks."""
    return subprocess.Popen(
        [*mpirun(ranks, *mpi), sys.executable, SCRIPT, str(archive), *options],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process: subprocess.Popen[str], timeout_s: float = 120.0) -> tuple[int, str]:
    """Wait for the end; a hang fails the test and leaves nothing behind."""
    try:
        output, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail(f"hangs: {process.communicate()[0]}")
    return process.returncode, output


def states(archive: Path) -> dict[TaskKey, TaskState]:
    """What the archive says; nothing before it is there."""
    try:
        with open_archive(archive) as view:
            return view.task_states()
    except ArchiveError:
        return {}


def done(archive: Path) -> set[TaskKey]:
    return {key for key, state in states(archive).items() if state.status == "done"}


def read_pids(process: subprocess.Popen[str], ranks: int) -> dict[int, int]:
    """Rank -> process, as they print them on starting."""
    pids: dict[int, int] = {}
    assert process.stdout is not None
    while len(pids) < ranks:
        line = process.stdout.readline()
        assert line, "ended before all ranks had started"
        if match := re.match(r"rank (\d+) is (\d+)", line):
            pids[int(match[1])] = int(match[2])
    return pids


def wait_until(condition, timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "did not come to pass"
        time.sleep(0.05)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_worker_costs_only_its_lease(tmp_path, how):
    archive = tmp_path / "archive.h5"
    process = launch(archive, "--seconds", "0.1", "--materials", "8", "--patience", "4")
    pids = read_pids(process, 4)
    wait_until(lambda: len(done(archive)) >= 3)
    os.kill(pids[2], how)
    code, output = finish(process)
    assert code == 0, output
    assert "rank 2 on" in output and "is lost" in output
    assert len(done(archive)) == 40 and verify(archive) == []
    wait_until(lambda: not Path(f"/proc/{pids[2]}").exists())


def test_the_campaign_goes_on_until_one_worker_is_left(tmp_path):
    archive = tmp_path / "archive.h5"
    process = launch(archive, "--seconds", "0.1", "--materials", "8")
    pids = read_pids(process, 4)
    for number, rank in enumerate((3, 1)):
        wait_until(lambda number=number: len(done(archive)) >= 4 * (number + 1))
        os.kill(pids[rank], signal.SIGKILL)
    code, output = finish(process)
    assert code == 0, output
    assert len(done(archive)) == 40 and verify(archive) == []


@pytest.mark.parametrize("mpi", [FAULT_TOLERANT, ()], ids=["ulfm", "plain"])
def test_a_master_that_cannot_read_its_archive_ends_the_run(tmp_path, mpi):
    """HDF5 would crash, so the master leaves at once; the workers must not wait for it."""
    archive = tmp_path / "archive.h5"
    code, output = finish(launch(archive, "--materials", "8", "--seconds", "0.05", "--give-up", "5", mpi=mpi))
    assert code == 75, output
    assert f"latdyn: {archive}" in output and "Traceback" not in output
    assert len(done(archive)) >= 5 and verify(archive) == []
    assert finish(launch(archive, "--materials", "8"))[0] == 0
    assert len(done(archive)) == 40


def test_a_dead_master_ends_the_workers_and_the_run_resumes(tmp_path):
    archive = tmp_path / "archive.h5"
    process = launch(archive, "--seconds", "0.1", "--materials", "4")
    pids = read_pids(process, 4)
    wait_until(lambda: len(done(archive)) >= 3)
    before = done(archive)
    os.kill(pids[0], signal.SIGKILL)
    code, output = finish(process)
    assert code != 0, output
    assert before <= done(archive) and verify(archive) == []
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids.values()))
    code, output = finish(launch(archive, "--materials", "4"))
    assert code == 0, output
    assert len(done(archive)) == 20 and verify(archive) == []


@pytest.mark.parametrize("fault", ["--kills", "--stops"])
def test_a_task_that_takes_its_worker_with_it_is_given_up_after_three(tmp_path, fault):
    """Workers lost on the way: at most four, the first death may hit a batch. The rest of the campaign is done."""
    archive = tmp_path / "archive.h5"
    code, output = finish(launch(archive, fault, "M1", "--patience", "4", "--seconds", "0.02", ranks=6))
    assert code == 1, output
    result = states(archive)
    assert result[TaskKey("M1", "m", "dynamics", 0)].status == "quarantined"
    assert len(done(archive)) == 20 - 3 and verify(archive) == []
    with open_archive(archive) as view:
        rows = [row for row in view.failures() if row.key.material == "M1"]
    assert rows[-1].exception == "WorkerLost" and rows[-1].quarantined


def test_without_fault_tolerance_a_lost_worker_ends_the_run_at_once(tmp_path):
    archive = tmp_path / "archive.h5"
    process = launch(archive, "--seconds", "0.2", "--materials", "8", mpi=())
    pids = read_pids(process, 4)
    wait_until(lambda: len(done(archive)) >= 3)
    before = done(archive)
    os.kill(pids[2], signal.SIGKILL)
    started = time.monotonic()
    code, output = finish(process, timeout_s=30)
    assert code != 0, output
    assert time.monotonic() - started < 15
    assert before <= done(archive) and verify(archive) == []


def test_without_fault_tolerance_a_hanging_worker_ends_the_run_with_75(tmp_path):
    archive = tmp_path / "archive.h5"
    process = launch(archive, "--seconds", "0.1", "--materials", "8", "--patience", "4", mpi=())
    pids = read_pids(process, 4)
    wait_until(lambda: len(done(archive)) >= 3)
    os.kill(pids[2], signal.SIGSTOP)
    code, output = finish(process, timeout_s=60)
    assert code != 0, output
    log = (tmp_path / "driver.log").read_text()
    assert "rank 2 on" in log and "is lost (no sign of life for" in log and "run the same command again" in log
    code, output = finish(launch(archive, "--materials", "8"))
    assert code == 0 and len(done(archive)) == 40 and verify(archive) == []


@pytest.mark.parametrize("mpi", [FAULT_TOLERANT, ()], ids=["ulfm", "plain"])
def test_a_worker_that_cannot_be_set_up_is_left_out_and_the_others_go_on(tmp_path, mpi):
    archive = tmp_path / "archive.h5"
    code, output = finish(launch(archive, "--refuses", "2", mpi=mpi))
    assert code == 0, output
    assert re.search(r"rank 2 on \S+ is not used: RuntimeError: no GPU here", output)
    with open_archive(archive) as view:
        (lost,) = view.lost_workers()
        assert lost.rank == 2 and "no GPU here" in lost.reason and lost.host
    assert len(done(archive)) == 20 and verify(archive) == []


def test_where_all_workers_refuse_the_run_ends_with_the_reason(tmp_path):
    code, output = finish(launch(tmp_path / "archive.h5", "--refuses", "1,2,3"))
    assert code == 2, output
    assert "RuntimeError: no GPU here" in output and "Traceback" not in output


def test_a_worker_on_which_everything_fails_is_found_out(tmp_path):
    """Its tasks succeed on the others; none of them is given up."""
    archive = tmp_path / "archive.h5"
    code, output = finish(launch(archive, "--broken", "2", "--materials", "8", "--seconds", "0.05", "--capacity", "4"))
    assert code == 0, output
    assert "rank 2 on" in output and "its device is at fault" in output
    with open_archive(archive) as view:
        assert [worker.rank for worker in view.lost_workers()] == [2]
    assert len(done(archive)) == 40 and verify(archive) == []


@pytest.mark.parametrize("mpi", [FAULT_TOLERANT, ()], ids=["ulfm", "plain"])
def test_a_drain_does_not_wait_for_what_cannot_be_interrupted(tmp_path, mpi):
    """A compilation, say: a minute of it would be left, and with it the lease."""
    archive = tmp_path / "archive.h5"
    process = launch(archive, "--deaf", "60", "--grace", "1", mpi=mpi)
    pids = read_pids(process, 4)
    log = tmp_path / "driver.log"
    wait_until(lambda: log.exists() and "uses cpu" in log.read_text())
    time.sleep(1.0)
    os.kill(pids[0], signal.SIGTERM)
    started = time.monotonic()
    code, output = finish(process, timeout_s=50)
    assert time.monotonic() - started < 1 + 15
    assert code == 75 or (mpi == () and code >= 128), output  # what mpirun makes of ranks that end by Abort(75)
    assert verify(archive) == []


def test_any_rank_killed_again_and_again(tmp_path):
    """Random SIGKILLs, the master's included, until the campaign is complete: equal to an undisturbed one."""
    rng = random.Random(7)
    archive, undisturbed = tmp_path / "archive.h5", tmp_path / "undisturbed.h5"
    assert finish(launch(undisturbed, "--materials", "6"))[0] == 0
    kills = 0
    for _ in range(8):
        process = launch(archive, "--materials", "6", "--seconds", "0.05")
        pids = read_pids(process, 4)
        before = done(archive)
        time.sleep(rng.uniform(0.3, 3.5))  # in the start, in mid-campaign, at the end
        with contextlib.suppress(ProcessLookupError):
            os.kill(pids[rng.choice((0, 0, 1, 2, 3))], signal.SIGKILL)
            kills += 1
        code, output = finish(process)
        assert before <= done(archive) and (not archive.exists() or verify(archive) == []), output
        if code == 0:
            break
    else:
        assert finish(launch(archive, "--materials", "6"))[0] == 0
    assert kills >= 1 and len(done(archive)) == 30
    with open_archive(archive) as ours, open_archive(undisturbed) as theirs:
        for key in done(undisturbed):
            if key.stage == "displace":
                for path in ("d0.0100/forces", "d0.0100/force_constants"):
                    np.testing.assert_array_equal(
                        ours.read(key.material, key.model, key.stage, path),
                        theirs.read(key.material, key.model, key.stage, path),
                    )
        for stage in ("relax", "displace", "dynamics"):
            ours_table, theirs_table = ours.table(stage), theirs.table(stage)
            for column in theirs_table.keys() - {"task"}:
                order = [np.lexsort((t["segment"], t["material"].astype(str))) for t in (ours_table, theirs_table)]
                np.testing.assert_array_equal(ours_table[column][order[0]], theirs_table[column][order[1]])
