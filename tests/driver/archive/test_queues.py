"""Is a job over? Batch systems as commands on PATH; the answers of Slurm are those of a real one."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from stub_queue import SLURM_HERE, no_job, slurm_job, stub

from driver.archive import queues
from driver.archive.queues import Job, job_state


@pytest.fixture(autouse=True)
def outside(monkeypatch: pytest.MonkeyPatch) -> None:
    no_job(monkeypatch)


def slurm(**changes: str) -> Job:
    return Job(**{"scheduler": "slurm", "id": "4711", "cluster": "here", **changes})


@pytest.mark.parametrize(
    ("environment", "job"),
    [
        ({}, None),
        (
            {"SLURM_JOB_ID": "5", "SLURMD_NODENAME": "n1", "SLURM_STEP_ID": "2", "SLURM_CLUSTER_NAME": "here"},
            Job("slurm", "5", "2", "", "here"),
        ),
        ({"SLURM_JOB_ID": "5", "SLURM_CLUSTER_NAME": "here"}, Job("slurm", "5", cluster="here", inside=False)),
        (
            {"SLURM_JOB_ID": "5", "SLURMD_NODENAME": "n1", "SLURM_RESTART_COUNT": "2"},
            Job("slurm", "5", restart="2"),
        ),
        (  # a task of an array has a number of its own
            {"SLURM_JOB_ID": "6", "SLURM_ARRAY_JOB_ID": "5", "SLURM_ARRAY_TASK_ID": "1", "SLURMD_NODENAME": "n1"},
            Job("slurm", "6"),
        ),
        (  # steps of heterogeneous jobs are numbered otherwise
            {"SLURM_JOB_ID": "6", "SLURM_HET_SIZE": "2", "SLURM_STEP_ID": "0", "SLURMD_NODENAME": "n1"},
            Job("slurm", "6"),
        ),
        ({"PBS_JOBID": "12.server.site"}, Job("pbs", "12.server.site", cluster="server.site")),
        ({"PBS_JOBID": "12[3].server"}, Job("pbs", "12[3].server", cluster="server")),
        ({"LSB_JOBID": "7", "LSB_JOBINDEX": "0", "LSB_EXEC_CLUSTER": "c"}, Job("lsf", "7", cluster="c")),
        ({"LSB_JOBID": "7", "LSB_JOBINDEX": "3"}, Job("lsf", "7[3]")),
        (
            {"FLUX_JOB_ID": "ƒAbC", "FLUX_URI": "local:///run/flux/local-3"},
            Job("flux", "ƒAbC", cluster="local:///run/flux/local"),
        ),
        ({"FLUX_JOB_ID": "f12"}, Job("flux", "f12", cluster="local:///run/flux/local")),
        # Flux within a job of Slurm: its processes end with that.
        ({"FLUX_JOB_ID": "f12", "SLURM_JOB_ID": "5", "SLURMD_NODENAME": "n1"}, Job("slurm", "5")),
    ],
)
def test_the_job_of_a_process(environment: dict[str, str], job: Job | None) -> None:
    assert Job.present(environment) == job


SHOW = "scontrol --oneliner show job 4711"
INVALID = ("", "slurm_load_jobs error: Invalid job id specified\n", 1)
SACCT = "sacct --noheader --parsable2 -X --jobs 4711"


@pytest.mark.parametrize(
    ("job", "answers", "over", "words"),
    [
        (slurm(), {SHOW: (slurm_job("4711", "RUNNING"), "", 0)}, False, "Slurm job 4711 is RUNNING"),
        (slurm(), {SHOW: (slurm_job("4711", "SUSPENDED"), "", 0)}, False, "SUSPENDED"),
        (slurm(), {SHOW: (slurm_job("4711", "COMPLETING"), "", 0)}, False, "try again in a minute"),
        (slurm(), {SHOW: (slurm_job("4711", "COMPLETED"), "", 0)}, True, r"over \(COMPLETED\)"),
        (slurm(), {SHOW: (slurm_job("4711", "NODE_FAIL"), "", 0)}, True, "NODE_FAIL"),
        (slurm(), {SHOW: (slurm_job("4711", "TIMEOUT"), "", 0)}, True, "TIMEOUT"),
        # Requeued: it waits, or runs again elsewhere; but COMPLETING comes first.
        (slurm(), {SHOW: (slurm_job("4711", "PENDING", 1), "", 0)}, True, "started again since, now PENDING"),
        (slurm(restart="1"), {SHOW: (slurm_job("4711", "RUNNING", 1), "", 0)}, False, "RUNNING"),
        (slurm(), {SHOW: (slurm_job("4711", "RUNNING", 1), "", 0)}, True, "started again"),
        (slurm(), {SHOW: (slurm_job("4711", "COMPLETING", 1), "", 0)}, False, "COMPLETING"),
        (slurm(), {SHOW: (slurm_job("4711", "PENDING"), "", 0)}, None, "PENDING"),  # never ran: not this job
        (slurm(), {SHOW: (slurm_job("4711", "SOMETHING_NEW"), "", 0)}, False, "SOMETHING_NEW"),
        # An array's number stands for all of its tasks.
        (
            slurm(),
            {
                SHOW: (
                    slurm_job("4713", "COMPLETED") + slurm_job("4711", "RUNNING") + slurm_job("4712", "FAILED"),
                    "",
                    0,
                )
            },
            False,
            "RUNNING",
        ),
        (slurm(), {SHOW: (slurm_job("4713", "COMPLETED"), "", 0)}, None, "does not list it"),
        # Steps: the job goes on, and what it ran has ended.
        (
            slurm(step="0"),
            {
                SHOW: (slurm_job("4711", "RUNNING"), "", 0),
                "scontrol --oneliner show step 4711.0": ("Job step 4711.0 not found\n", "", 1),
            },
            True,
            "its step 0 has ended",
        ),
        (
            slurm(step="0"),
            {
                SHOW: (slurm_job("4711", "RUNNING"), "", 0),
                "scontrol --oneliner show step 4711.0": ("StepId=4711.0 State=RUNNING\n", "", 0),
            },
            False,
            "RUNNING",
        ),
        (
            slurm(step="0"),
            {
                SHOW: (slurm_job("4711", "RUNNING"), "", 0),
                "scontrol --oneliner show step 4711.0": ("", "Unable to contact slurm controller\n", 1),
            },
            False,
            "RUNNING",
        ),
        (slurm(step="4294967290"), {SHOW: (slurm_job("4711", "RUNNING"), "", 0)}, False, "RUNNING"),
        # Forgotten by the controller: the accounting remembers, where there is one.
        (slurm(), {SHOW: INVALID, SACCT: ("4711|COMPLETED\n", "", 0)}, True, "COMPLETED"),
        (slurm(), {SHOW: INVALID, SACCT: ("4711|CANCELLED by 1000\n", "", 0)}, True, "CANCELLED"),
        (slurm(), {SHOW: INVALID, SACCT: ("4711|RUNNING\n", "", 0)}, None, "RUNNING in sacct"),
        (
            slurm(),
            {SHOW: INVALID, SACCT: ("", "Slurm accounting storage is disabled\n", 1)},
            True,
            "not know it any more",
        ),
        (slurm(), {SHOW: INVALID}, True, "not know it any more"),
        # Whatever is not an answer tells nothing.
        (
            slurm(),
            {SHOW: ("", "slurm_load_jobs error: Unable to contact slurm controller\n", 1)},
            None,
            "Unable to con",
        ),
        (slurm(), {SHOW: ("", "", 0)}, None, "does not list it"),
        (slurm(), {SHOW: ("garbage\n", "", 0)}, None, "does not list it"),
        (slurm(cluster="there"), {SHOW: (slurm_job("4711", "COMPLETED"), "", 0)}, None, "belongs to there"),
        (slurm(cluster="there"), {SHOW: INVALID}, None, "this machine to here"),
        # Lock files of earlier versions do not name the cluster.
        (slurm(cluster=""), {SHOW: (slurm_job("4711", "COMPLETED"), "", 0)}, True, "COMPLETED"),
        (slurm(cluster=""), {SHOW: INVALID}, None, "unknown to this cluster"),
        (slurm(inside=False), {SHOW: (slurm_job("4711", "COMPLETED"), "", 0)}, None, "shell that outlives its job"),
        (slurm(id="--help"), {}, None, "cannot be asked"),
        (slurm(scheduler="cron"), {}, None, "cannot be asked"),
    ],
)
def test_slurm(monkeypatch, tmp_path: Path, job: Job, answers: dict, over: bool | None, words: str) -> None:
    stub(monkeypatch, tmp_path / "bin", {**SLURM_HERE, **answers})
    state = job_state(job)
    assert state.over is over, state
    assert re.search(words, state.text), state
    assert "\n" not in state.text


PBS = Job("pbs", "12[3].server", cluster="server")
QSTAT = "qstat -f 12[3].server"


def pbs_state(letter: str) -> tuple[str, str, int]:
    return f"Job Id: 12[3].server\n    Job_Name = a\n    job_state = {letter}\n    queue = q\n", "", 0


@pytest.mark.parametrize(
    ("answer", "over"),
    [
        (pbs_state("R"), False),
        (pbs_state("S"), False),
        (pbs_state("E"), False),
        (pbs_state("F"), True),
        (pbs_state("C"), True),  # Torque
        (pbs_state("X"), True),  # a task of an array
        (pbs_state("Q"), True),  # started again, or rather not yet
        (pbs_state("T"), None),
        (pbs_state("M"), None),
        (("", "qstat: 12[3].server Job has finished, use -x or -H to obtain historical job information\n", 35), True),
        (("", "qstat: Unknown Job Id 12[3].server\n", 153), True),
        (("", "qstat: Unknown Job Id Error 12[3].server\n", 153), True),  # Torque
        (("", "qstat: cannot connect to server server (errno=15010)\n", 1), None),
        (("", "", 0), None),
    ],
)
def test_pbs(monkeypatch, tmp_path: Path, answer: tuple[str, str, int], over: bool | None) -> None:
    # In a pattern of the shell brackets are no brackets.
    stub(monkeypatch, tmp_path / "bin", {QSTAT: answer})
    assert job_state(PBS).over is over


def test_pbs_without_the_name_of_its_server(monkeypatch, tmp_path: Path) -> None:
    """A server that does not know a job may be the wrong one."""
    stub(monkeypatch, tmp_path / "bin", {"qstat -f 12": ("", "qstat: Unknown Job Id 12\n", 153)})
    assert job_state(Job("pbs", "12")).over is None


LSID = {"lsid": ("IBM Spectrum LSF Standard 10.1\nMy cluster name is c1\nMy master name is m\n", "", 0)}


@pytest.mark.parametrize(
    ("cluster", "answer", "over"),
    [
        ("c1", ("RUN\n", "", 0), False),
        ("c1", ("USUSP\n", "", 0), False),
        ("c1", ("DONE\n", "", 0), True),
        ("c1", ("EXIT\n", "", 0), True),
        ("c1", ("PEND\n", "", 0), True),
        ("", ("PEND\n", "", 0), None),
        ("c1", ("UNKWN\n", "", 0), None),
        ("c1", ("ZOMBI\n", "", 0), None),
        ("c1", ("", "Job <7> is not found\n", 255), True),
        ("", ("", "Job <7> is not found\n", 255), None),
        ("", ("DONE\n", "", 0), True),
        ("c2", ("DONE\n", "", 0), None),
        ("c1", ("", "LSF is down. Please wait ...\n", 255), None),
    ],
)
def test_lsf(monkeypatch, tmp_path: Path, cluster: str, answer: tuple[str, str, int], over: bool | None) -> None:
    stub(monkeypatch, tmp_path / "bin", {**LSID, "bjobs -noheader -o stat 7": answer})
    assert job_state(Job("lsf", "7", cluster=cluster)).over is over


@pytest.mark.parametrize(
    ("uri", "answer", "over"),
    [
        ("local:///tmp/flux-1/local-5", ("RUN\n", "", 0), False),
        ("local:///tmp/flux-1/local-5", ("CLEANUP\n", "", 0), False),
        ("local:///tmp/flux-1/local-5", ("INACTIVE\n", "", 0), True),
        ("local:///tmp/flux-1/local-5", ("", "flux-jobs: ERROR: JobID f12 unknown\n", 1), True),
        ("local:///tmp/flux-1/local-5", ("SCHED\n", "", 0), None),
        ("local:///tmp/flux-2/local-5", ("INACTIVE\n", "", 0), None),
        ("local:///tmp/flux-1/local-5", ("", "flux-jobs: ERROR: Unable to connect to Flux\n", 1), None),
    ],
)
def test_flux(monkeypatch, tmp_path: Path, uri: str, answer: tuple[str, str, int], over: bool | None) -> None:
    stub(monkeypatch, tmp_path / "bin", {"flux jobs --no-header --format={state} f12": answer})
    job = Job.present({"FLUX_JOB_ID": "f12", "FLUX_URI": "local:///tmp/flux-1/local-0"})
    assert job is not None
    monkeypatch.setenv("FLUX_URI", uri)
    assert job_state(job).over is over


def test_a_command_that_is_missing_or_hangs_tells_nothing(monkeypatch, tmp_path: Path) -> None:
    """What a hanging script has started does not hold the question up either."""
    monkeypatch.setenv("PATH", str(tmp_path))
    state = job_state(slurm())
    assert state.over is None and "scontrol: No such file" in state.text
    hanging = tmp_path / "scontrol"
    hanging.write_text("#!/bin/sh\n/bin/sleep 60 &\n/bin/sleep 60\n")
    hanging.chmod(0o755)
    monkeypatch.setattr(queues, "TIMEOUT_S", 0.3)
    began = time.monotonic()
    state = job_state(slurm())
    assert time.monotonic() - began < 20.0
    assert state.over is None and "scontrol did not answer within 0.3 s" in state.text


def test_another_cluster_is_not_asked_by_accident(monkeypatch, tmp_path: Path) -> None:
    """SLURM_CLUSTERS would send the question there."""
    asked = stub(monkeypatch, tmp_path / "bin", {**SLURM_HERE, SHOW: (slurm_job("4711", "COMPLETED"), "", 0)})
    script = tmp_path / "bin" / "scontrol"
    script.write_text(script.read_text().replace("asked=", "unset x; x=${SLURM_CLUSTERS+exit} && $x\nasked=", 1))
    monkeypatch.setenv("SLURM_CLUSTERS", "elsewhere")
    assert job_state(slurm()).over is True
    assert asked.read_text().splitlines() == ["scontrol show config", SHOW]
