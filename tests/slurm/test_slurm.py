"""Campaigns under a real Slurm: launching, GPUs, the wall time, coming back."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from campaigns import ROOT, SHORT
from slurm_cluster import SlurmCluster

from driver.archive.reader import open_archive
from driver.archive.records import ArchiveError, TaskKey
from driver.archive.verify import verify

pytestmark = [pytest.mark.slurm, pytest.mark.xdist_group("slurm")]

SCRIPT = ROOT / "jobs" / "slurm.sbatch"
THREE_RANKS = ("--nodes=1", "--gpus-per-node=2", "--ntasks-per-node=3", "--cpus-per-task=1")


def done(archive: Path) -> dict[TaskKey, float]:
    """Committed tasks and when they were committed."""
    try:
        with open_archive(archive) as view:
            tasks = view.table("tasks")
            finished = zip(
                tasks["material"], tasks["model"], tasks["stage"], tasks["segment"], tasks["finished_s"], strict=True
            )
            states = view.task_states()
            keys = {TaskKey(*row[:3], int(row[3])): float(row[4]) for row in finished}
            return {key: when for key, when in keys.items() if states[key].status == "done"}
    except ArchiveError:
        return {}  # not created yet


def wait_for_end(cluster: SlurmCluster, job: str, timeout_s: float = 240) -> dict[str, str]:
    """Wait until a job has ended for good; return what Slurm says of it."""
    running = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "REQUEUED", "SUSPENDED")
    assert cluster.wait(lambda: cluster.job(job).get("JobState") not in running, timeout_s), cluster.job(job)
    return cluster.job(job)


def stand_in(folder: Path) -> dict[str, str]:
    """Environment that has `jobs/slurm.sbatch` run ranks which only tell what they see."""
    program = folder / "python"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {ROOT}/tests/helpers/rank_probe.py "$@"\n')
    program.chmod(0o755)
    return {"LATDYN_PYTHON": str(program), "PYTHONPATH": str(ROOT), "PROBE_FILE": str(folder / "rank")}


def told(folder: Path, rank: int) -> list[dict[str, object]]:
    """What a rank has told so far."""
    file = folder / f"rank.{rank}"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def submit(cluster: SlurmCluster, folder: Path, *options: str, arguments: tuple[str, ...], **environment: str) -> str:
    """Submit jobs/slurm.sbatch from the project's root, with its log and campaign in `folder`."""
    environment = {"LATDYN_PYTHON": sys.executable} | environment
    options = (f"--output={folder}/job.log", "--time=10", *options)
    return cluster.submit(SCRIPT, options=options, arguments=(*arguments, f"runs={folder}"), cwd=ROOT, **environment)


@pytest.fixture(scope="module", autouse=True)
def short_job(cluster, tmp_path_factory) -> Iterator[tuple[str, Path]]:
    """A job that no task fits into; its minute passes while the other tests run."""
    folder = tmp_path_factory.mktemp("short")
    options = ("--nodes=1", "--gpus-per-node=0", "--ntasks-per-node=2", "--cpus-per-task=1")
    job = submit(
        cluster,
        folder,
        *options,
        "--time=1",
        "--signal=USR1@20",
        arguments=SHORT,
        PROBE_WAIT="1",
        **stand_in(folder),
    )
    yield job, folder
    cluster.command("scancel", job)


@pytest.fixture(scope="module")
def uninterrupted(cluster, mpich, tmp_path_factory) -> Path:
    """Archive of the short campaign by one master and two workers, with plain srun: MPICH, or Open MPI without it."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    result = cluster.command(
        *("srun", "-N1", "-n3", "--mpi=pmi2" if mpich else "--mpi=pmix", "--kill-on-bad-exit=0"),
        *(sys.executable, "-m", "driver", "run", *SHORT, f"runs={folder}"),
        cwd=ROOT,
        timeout_s=240,
        **mpich,
    )
    assert result.returncode == 0, result.stderr
    assert "rank 1 on" in result.stderr and "rank 2 on" in result.stderr
    return folder / "smoke" / "archive.h5"


def test_processes_that_mpi_does_not_connect_are_refused(cluster):
    result = cluster.command(
        "srun", "-N1", "-n3", "--mpi=none", sys.executable, "-m", "driver", "run", *SHORT, cwd=ROOT, timeout_s=60
    )
    assert result.returncode == 2
    assert result.stderr.count("latdyn: the launcher started 3 processes, but MPI does not connect them") == 3
    assert "--mpi=pmi2" in result.stderr and "--mpi=pmix" in result.stderr
    assert "Traceback" not in result.stderr


def test_one_process_needs_no_mpi(cluster):
    program = "from driver.transport import connect; print(connect(60.0).alone)"
    for flavour in ("none", "pmi2", "pmix"):
        result = cluster.command(
            "srun", "-n1", f"--mpi={flavour}", sys.executable, "-c", program, cwd=ROOT, timeout_s=60
        )
        assert result.returncode == 0 and result.stdout.startswith("True"), result.stderr


@pytest.mark.parametrize(
    ("options", "environment", "devices"),
    [
        pytest.param(
            ("--nodes=3", "--gpus-per-node=2", "--ntasks-per-node=3"),
            {},
            {"n1": ["cuda:0", "cuda:1"], "n2": ["cuda:0", "cuda:1"], "n3": ["cuda:0", "cuda:1"]},
            id="a GPU each",
        ),
        pytest.param(
            ("--nodes=2", "--gres=gpu:2", "--ntasks-per-node=5"),
            {"LATDYN_WORKERS_PER_GPU": "2"},
            {"n1": ["cuda:0", "cuda:0", "cuda:1", "cuda:1"], "n2": ["cuda:0", "cuda:0", "cuda:1", "cuda:1"]},
            id="two workers share a GPU",
        ),
        pytest.param(
            ("--nodes=2", "--gpus-per-node=0", "--ntasks-per-node=2", "--cpus-per-task=2"),
            {},
            {"n1": ["cpu"], "n2": ["cpu", "cpu"]},
            id="no GPU",
        ),
    ],
)
def test_every_worker_has_its_device(cluster, tmp_path, options, environment, devices):
    """The master on the first node, and workers by GPU on every node."""
    arguments = (*SHORT, "dynamics.temperature_K=250")
    environment = stand_in(tmp_path) | environment
    for _ in range(3):
        job = submit(cluster, tmp_path, "--cpus-per-task=1", *options, arguments=arguments, **environment)
        ended = wait_for_end(cluster, job, 90)
        log = (tmp_path / "job.log").read_text()
        # Open MPI 5.0 can crash in MPI_Init where several of Slurm's nodes are one busy host, before any code of ours.
        if not ("Segmentation fault" in log and "PMPI_Init" in log):
            break
        (tmp_path / "job.log").unlink()
    assert ended["JobState"] == "COMPLETED", log
    size = 1 + sum(len(workers) for workers in devices.values())
    ranks = [told(tmp_path, rank)[0] for rank in range(size)]
    assert [r["size"] for r in ranks] == [size] * size and not (tmp_path / f"rank.{size}").exists()
    assert ranks[0]["node"] == "n1"
    for node, expected in devices.items():
        assert [r["device"] for r in ranks[1:] if r["node"] == node] == expected
    gpus = len({device for device in devices["n1"] if device != "cpu"})
    assert {r["visible"] for r in ranks} == {",".join(str(i) for i in range(gpus))}
    cpus = "2" if "--cpus-per-task=2" in options else "1"
    assert all(r["omp_threads"] == cpus for r in ranks)
    assert ranks[0]["overrides"] == [f"execution.threads={cpus}", *arguments, f"runs={tmp_path}"]


def test_too_few_tasks_are_refused(cluster, tmp_path):
    job = submit(cluster, tmp_path, "--gpus-per-node=4", "--ntasks-per-node=4", "--cpus-per-task=1", arguments=SHORT)
    assert wait_for_end(cluster, job, 60)["ExitCode"] == "2:0"
    assert "5 ranks do not fit; set --ntasks-per-node=5" in (tmp_path / "job.log").read_text()


def test_wrong_settings_end_the_job_with_code_2(cluster, tmp_path):
    job = submit(cluster, tmp_path, *THREE_RANKS, arguments=("campaign=smoke", "dynamics.temperature=300"))
    assert wait_for_end(cluster, job, 60)["ExitCode"] == "2:0"
    assert "latdyn: unknown key 'dynamics.temperature'" in (tmp_path / "job.log").read_text()


def test_killed_rank_brings_the_job_back_and_scancel_does_not(cluster, tmp_path):
    job = submit(cluster, tmp_path, *THREE_RANKS, arguments=SHORT, PROBE_WAIT="1", **stand_in(tmp_path))
    assert cluster.wait(lambda: len(told(tmp_path, 2)) == 1, 60)
    os.kill(int(str(told(tmp_path, 2)[0]["pid"])), signal.SIGKILL)
    assert cluster.wait(lambda: len(told(tmp_path, 2)) == 2, 90), (tmp_path / "job.log").read_text()
    assert told(tmp_path, 2)[1]["restart"] == 1
    cluster.command("scancel", job)
    ended = wait_for_end(cluster, job, 60)
    assert (ended["JobState"], ended["Restarts"]) == ("CANCELLED", "1")
    time.sleep(1)
    assert cluster.job(job)["JobState"] == "CANCELLED"


def test_signalled_job_comes_back_and_finishes(cluster, tmp_path, uninterrupted):
    """USR1 to the ranks, as before the wall time: exit 75, queued again, and in the end the same archive (Open MPI)."""
    archive = tmp_path / "smoke" / "archive.h5"
    job = submit(cluster, tmp_path, *THREE_RANKS, arguments=(*SHORT, "execution.grace_s=0"))
    assert cluster.wait(lambda: len(done(archive)) >= 3, 120), (tmp_path / "job.log").read_text()
    cluster.command("scancel", "--signal=USR1", job)
    assert cluster.wait(lambda: cluster.job(job).get("Restarts") == "1", 60), (tmp_path / "job.log").read_text()
    committed = done(archive)
    ended = wait_for_end(cluster, job)
    log = (tmp_path / "job.log").read_text()
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("COMPLETED", "0:0", "1"), log
    assert f"job {job}, run 1" in log and "run the same command again" in log and f"job {job}, run 2" in log
    assert not archive.with_name(f"archive.h5.job-{job}").exists()

    final = done(archive)
    assert 3 <= len(committed) < len(final)
    assert {key: final[key] for key in committed} == committed  # kept, not computed again
    assert final.keys() == done(uninterrupted).keys()
    assert verify(archive) == []
    assert_same_arrays(archive, uninterrupted)


def assert_same_arrays(archive: Path, reference: Path) -> None:
    """Structures and forces to rounding."""
    with open_archive(archive) as view, open_archive(reference) as expected:
        for key in expected.materials():
            for stage, path in (("relax", "positions"), ("relax", "cell"), ("displace", "d0.0100/forces")):
                ours, theirs = view.read(key, "demo", stage, path), expected.read(key, "demo", stage, path)
                np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-10)


def test_mpich_under_pmi2(mpich, uninterrupted):
    if not mpich:
        pytest.skip("no MPICH on this machine; tests/slurm/install.sh installs libmpich12 where it is root")
    assert verify(uninterrupted) == []
    with open_archive(uninterrupted) as view:
        assert view.header.campaign == "smoke"
        assert set(view.table("tasks")["rank"]) == {1, 2}  # both workers computed


def test_job_without_progress_is_not_queued_again_for_ever(cluster, short_job):
    """Slurm's own signal reaches every rank; after two runs that finished no task the job ends with code 75."""
    job, folder = short_job
    ended = wait_for_end(cluster, job)
    log = (folder / "job.log").read_text()
    assert (ended["ExitCode"], ended["Restarts"]) == ("75:0", "1"), log
    for rank in (0, 1):
        lines = told(folder, rank)
        assert [line.get("restart") for line in lines] == [0, None, 1, None]
        assert [line.get("signal") for line in lines] == [None, "SIGUSR1", None, "SIGUSR1"]
    assert "two runs in a row finished no task" in log


def test_a_job_with_gpus_that_torch_does_not_see_never_runs_on_cpus(cluster, tmp_path):
    """These GPUs are only device files: all workers refuse, and the job ends with the reason."""
    arguments = (*(word for word in SHORT if word != "execution.device=cpu"), "execution.device=auto")
    job = submit(cluster, tmp_path, *THREE_RANKS, arguments=arguments)
    ended = wait_for_end(cluster, job, 120)
    log = (tmp_path / "job.log").read_text()
    assert ended["ExitCode"] == "2:0", log
    assert "is not used: the job has GPUs but torch sees none" in log and "Traceback" not in log
