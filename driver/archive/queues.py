"""Ask a batch system whether one of its jobs is over. Whatever is not certain counts as "cannot tell"."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass

TIMEOUT_S = 30.0
"""How long one question may take: a busy controller answers late."""

_ID = re.compile(r"[\wƒ][\wƒ.+@\[\]-]*")
"""What a job's number may look like; it comes from a file and becomes an argument."""

_FLUX_SYSTEM = "local:///run/flux/local"
_LARGEST_STEP = 4_000_000_000
"""Slurm's larger numbers stand for the steps that every job has: batch, extern, interactive."""


@dataclass(frozen=True)
class Job:
    """A job of a batch system.

    Attributes
    ----------
    scheduler : str
        slurm, pbs, lsf or flux.
    id : str
        As its commands take it.
    step : str
        Of Slurm: number of the step; "" if unknown.
    restart : str
        Of Slurm: how often the job has been started again; "" for never.
    cluster : str
        Which of several clusters (Flux: instances) it belongs to; "" if unknown.
    inside : bool
        Whether the process that named it ends with it; not so in a shell that salloc has started on a login node.
    """

    scheduler: str
    id: str
    step: str = ""
    restart: str = ""
    cluster: str = ""
    inside: bool = True

    @classmethod
    def present(cls, environment: Mapping[str, str] | None = None) -> Job | None:
        """Return the job that this process belongs to; None if there is none."""
        env = os.environ if environment is None else environment
        if env.get("SLURM_JOB_ID"):
            step = "" if env.get("SLURM_HET_SIZE") else env.get("SLURM_STEP_ID", "")
            cluster, restart = env.get("SLURM_CLUSTER_NAME", ""), env.get("SLURM_RESTART_COUNT", "")
            # salloc names its job to a shell on the login node, too, but only slurmd names the node.
            return cls("slurm", env["SLURM_JOB_ID"], step, restart, cluster, "SLURMD_NODENAME" in env)
        if env.get("PBS_JOBID"):
            return cls("pbs", env["PBS_JOBID"], cluster=env["PBS_JOBID"].partition(".")[2])
        if env.get("LSB_JOBID"):
            index = env.get("LSB_JOBINDEX", "0")
            id_ = env["LSB_JOBID"] if index in ("", "0") else f"{env['LSB_JOBID']}[{index}]"
            return cls("lsf", id_, cluster=env.get("LSB_EXEC_CLUSTER", ""))
        if env.get("FLUX_JOB_ID"):
            return cls("flux", env["FLUX_JOB_ID"], cluster=_flux_instance(env))
        return None

    def __str__(self) -> str:
        names = {"slurm": "Slurm", "pbs": "PBS", "lsf": "LSF", "flux": "Flux"}
        return f"{names.get(self.scheduler, self.scheduler)} job {self.id}"

    @property
    def cancel(self) -> str:
        """The command that ends it."""
        commands = {"slurm": "scancel", "pbs": "qdel", "lsf": "bkill", "flux": "flux cancel"}
        return f"{commands.get(self.scheduler, 'cancel')} {self.id}"

    def restarted_as(self, other: Job | None) -> bool:
        """Whether the other one is a later start of this job: Slurm ends a job before it starts it again."""
        same = other is not None and (self.scheduler, self.id) == (other.scheduler, other.id)
        if other is None or not same or (self.cluster and other.cluster and self.cluster != other.cluster):
            return False
        return self.scheduler == "slurm" and _count(other.restart) > _count(self.restart)


@dataclass(frozen=True)
class JobState:
    """What a queue says of a job.

    Attributes
    ----------
    over : bool or None
        Whether none of its processes can be running any more; None if that cannot be told.
    text : str
        The state, or why it cannot be told.
    """

    over: bool | None
    text: str


class _NoAnswerError(Exception):
    """A command did not answer; the message says why."""


@dataclass(frozen=True)
class _Answer:
    code: int
    output: str
    errors: str


def job_state(job: Job) -> JobState:
    """Ask the queue about a job; takes seconds where the queue is busy, and `TIMEOUT_S` per question at most."""
    asked = {"slurm": _slurm, "pbs": _pbs, "lsf": _lsf, "flux": _flux}.get(job.scheduler)
    if not job.inside:
        return JobState(None, "it was started from a shell that outlives its job")
    if asked is None or not _ID.fullmatch(job.id):
        return JobState(None, f"{job} cannot be asked for")
    try:
        return asked(job)
    except _NoAnswerError as error:
        return JobState(None, f"the state of {job} cannot be told ({error})")


def _ask(*words: str) -> _Answer:
    env = {name: value for name, value in os.environ.items() if name != "SLURM_CLUSTERS"} | {"LC_ALL": "C"}
    try:
        # A session of its own: where the command is a script, what it has started goes with it.
        process = subprocess.Popen(
            words,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        raise _NoAnswerError(f"{words[0]}: {error.strerror}") from error
    with process:
        try:
            output, errors = process.communicate(timeout=TIMEOUT_S)
        except BaseException as error:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise _NoAnswerError(f"{words[0]} did not answer within {TIMEOUT_S:g} s") from error
            raise
    return _Answer(process.returncode, output.decode(errors="replace"), errors.decode(errors="replace"))


def _refused(command: str, answer: _Answer) -> _NoAnswerError:
    lines = (answer.errors or answer.output).strip().splitlines()
    said = lines[-1][:200] if lines else "nothing"
    return _NoAnswerError(f"{command} ended with {answer.code} and said: {said}")


def _over(job: Job, text: str) -> JobState:
    return JobState(True, f"{job} is over ({text})")


def _alive(job: Job, text: str) -> JobState:
    return JobState(False, f"{job} is {text}")


def _unclear(job: Job, text: str) -> JobState:
    return JobState(None, f"{job} is {text}, which does not tell whether that process is gone")


def _require_cluster(job: Job, find: Callable[[], str]) -> None:
    """Job numbers are unique within one cluster only."""
    if job.cluster and (here := find()) != job.cluster:
        raise _NoAnswerError(f"it belongs to {job.cluster}, and this machine to {here or 'an unknown cluster'}")


# -- Slurm -------------------------------------------------------------------------------------------------------------

_SLURM_OVER = {
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "LAUNCH_FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "RECONFIG_FAIL",
    "REVOKED",
    "SPECIAL_EXIT",
    "TIMEOUT",
}
_SLURM_WAITING = {"PENDING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESV_DEL_HOLD"}
"""A job that has run and waits has been ended, and is to start again."""


def _slurm(job: Job) -> JobState:
    _require_cluster(job, _slurm_cluster)
    answer = _ask("scontrol", "--oneliner", "show", "job", job.id)
    if answer.code != 0 and "invalid job id" in answer.errors.lower():
        return _slurm_forgotten(job)
    if answer.code != 0:
        raise _refused("scontrol", answer)
    for line in answer.output.splitlines():  # one per task of an array
        fields = dict(word.partition("=")[::2] for word in line.split())
        if fields.get("JobId") == job.id:
            return _slurm_known(job, fields)
    raise _NoAnswerError("scontrol does not list it")


def _slurm_known(job: Job, fields: Mapping[str, str]) -> JobState:
    found = re.match(r"[A-Z_]+", fields.get("JobState", ""))
    state = found[0] if found else ""
    again = _count(fields.get("Restarts", "")) > _count(job.restart)
    if state in _SLURM_OVER:
        return _over(job, state)
    if state == "COMPLETING":
        return _alive(job, f"{state}: it is about to end, try again in a minute")
    if again:
        return _over(job, f"started again since, now {state}")
    if state in _SLURM_WAITING or not state:
        return _unclear(job, state or "in no known state")
    if job.step.isdecimal() and int(job.step) < _LARGEST_STEP:
        answer = _ask("scontrol", "--oneliner", "show", "step", f"{job.id}.{job.step}")
        if answer.code != 0 and re.search(r"step \S+ not found", answer.output + answer.errors):
            return _over(job, f"{state}, but its step {job.step} has ended")
    return _alive(job, state)


def _slurm_forgotten(job: Job) -> JobState:
    """Slurm's controller forgets a job some minutes after its end; the accounting, where there is one, does not."""
    with contextlib.suppress(_NoAnswerError):
        answer = _ask("sacct", "--noheader", "--parsable2", "-X", "--jobs", job.id, "--format", "JobIDRaw,State")
        rows = [line.partition("|")[::2] for line in answer.output.splitlines()]
        states = [state.split(" ")[0] for number, state in rows if number == job.id and answer.code == 0]
        if states:
            return _over(job, states[-1]) if states[-1] in _SLURM_OVER else _unclear(job, f"{states[-1]} in sacct")
    if job.cluster:
        return _over(job, "Slurm does not know it any more")
    return _unclear(job, "unknown to this cluster")


def _slurm_cluster() -> str:
    answer = _ask("scontrol", "show", "config")
    found = re.search(r"^ClusterName\s*=\s*(\S+)", answer.output, re.MULTILINE)
    if answer.code != 0 or not found:
        raise _refused("scontrol", answer)
    return found[1]


def _count(text: str) -> int:
    return int(text) if text.isdecimal() else 0


# -- PBS: PBS Professional, OpenPBS, Torque ----------------------------------------------------------------------------

_PBS_STATES = {"F": "finished", "C": "completed", "X": "finished", "E": "exiting: try again in a minute"}
_PBS_WAITING = {"Q": "queued again", "H": "held", "W": "waiting"}


def _pbs(job: Job) -> JobState:
    answer = _ask("qstat", "-f", job.id)  # no -x: that is the history in PBS Professional, but XML in Torque
    found = re.search(r"^\s*job_state = (\w)", answer.output, re.MULTILINE)
    if answer.code == 0 and found:
        state = found[1]
        if state in "FCX":
            return _over(job, _PBS_STATES[state])
        if state in _PBS_WAITING and job.cluster:  # it ran when it took the lock
            return _over(job, _PBS_WAITING[state])
        if state in "RSUBE":
            return _alive(job, _PBS_STATES.get(state, f"in state {state}"))
        return _unclear(job, f"in state {state}")
    if "has finished" in answer.errors:
        return _over(job, "finished")
    if job.cluster and re.search(r"unknown job id", answer.errors, re.IGNORECASE):
        return _over(job, "PBS does not know it any more")
    raise _refused("qstat", answer)


# -- LSF ---------------------------------------------------------------------------------------------------------------


def _lsf(job: Job) -> JobState:
    _require_cluster(job, _lsf_cluster)
    answer = _ask("bjobs", "-noheader", "-o", "stat", job.id)
    state = answer.output.strip()
    if state in ("DONE", "EXIT"):
        return _over(job, state)
    if state == "PEND" and job.cluster:  # it ran when it took the lock
        return _over(job, "PEND, queued again")
    if state in ("RUN", "USUSP", "SSUSP", "PROV"):
        return _alive(job, state)
    if state in ("PEND", "PSUSP", "WAIT", "UNKWN", "ZOMBI"):
        return _unclear(job, state)
    if job.cluster and "is not found" in answer.errors:
        return _over(job, "LSF does not know it any more")
    raise _refused("bjobs", answer)


def _lsf_cluster() -> str:
    answer = _ask("lsid")
    found = re.search(r"cluster name is (\S+)", answer.output)
    if answer.code != 0 or not found:
        raise _refused("lsid", answer)
    return found[1]


# -- Flux --------------------------------------------------------------------------------------------------------------


def _flux(job: Job) -> JobState:
    _require_cluster(job, lambda: _flux_instance(os.environ))
    answer = _ask("flux", "jobs", "--no-header", "--format={state}", job.id)
    state = answer.output.strip()
    if state == "INACTIVE":
        return _over(job, state)
    if state in ("RUN", "CLEANUP"):
        return _alive(job, state)
    if state in ("DEPEND", "PRIORITY", "SCHED"):
        return _unclear(job, state)
    if job.cluster and re.search(r"\bunknown\b", answer.errors):
        return _over(job, "Flux does not know it")
    raise _refused("flux jobs", answer)


def _flux_instance(environment: Mapping[str, str]) -> str:
    """Return what tells one Flux instance from others: its address, less the rank of the broker."""
    return re.sub(r"-\d+$", "", environment.get("FLUX_URI", "") or _FLUX_SYSTEM)
