"""Who holds a lock, and whether that process is provably gone."""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from driver.archive.queues import Job, JobState, job_state

_DEAD = ("Z", "X")
_STOPPED = ("T", "t")


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock.

    Attributes
    ----------
    host : str
    pid : int
    started : str
        What tells this process from a later one of the same number; "" where the system does not say.
    boot : str
        What tells this start of the host, and its kernel, from others; "" where the system does not say.
    job, restart : str
        The batch system's number of the job, and Slurm's restart count, or "".
    since : str
        Local time at which the lock was taken.
    scheduler, cluster, step, inside : str, str, str, bool
        The rest of `queues.Job`; files of earlier versions have no scheduler, and their jobs are Slurm's.
    machine : str
        What tells this machine from others of the same name; "" where the system does not say.
    namespace : str
        Within which process numbers are unique: a container may have its own.
    locks : bool
        Whether the file itself is locked as long as the process lives.
    token : str
        Unique to one taking of one lock; "" in files of earlier versions.
    """

    host: str
    pid: int
    started: str = ""
    boot: str = ""
    job: str = ""
    restart: str = ""
    since: str = ""
    scheduler: str = ""
    cluster: str = ""
    step: str = ""
    inside: bool = True
    machine: str = ""
    namespace: str = ""
    locks: bool = False
    token: str = ""

    @classmethod
    def present(cls) -> Holder:
        """Describe this process; each time with a token of its own."""
        job = Job.present() or Job("", "")
        return cls(
            host=socket.gethostname(),
            pid=os.getpid(),
            started=_process(os.getpid())[1],
            boot=_text("/proc/sys/kernel/random/boot_id"),
            job=job.id,
            restart=job.restart,
            since=time.strftime("%Y-%m-%d %H:%M:%S"),
            scheduler=job.scheduler,
            cluster=job.cluster,
            step=job.step,
            inside=job.inside,
            machine=_text("/etc/machine-id"),
            namespace=_namespace(),
            token=secrets.token_hex(8),
        )

    @classmethod
    def parse(cls, data: bytes) -> Holder | None:
        """Return the holder that a lock file names; None if it names nobody, as after a power loss."""
        try:
            values = json.loads(data)
            known = {field.name: field.type for field in fields(cls)}
            given = {name: value for name, value in values.items() if name in known}
            types = {"str": str, "int": int, "bool": bool}
            if not all(isinstance(value, types[str(known[name])]) for name, value in given.items()):
                return None
            return cls(**given)
        except (ValueError, TypeError, AttributeError):
            return None

    def to_bytes(self) -> bytes:
        """Return what `parse` reads."""
        return json.dumps(asdict(self)).encode() + b"\n"

    @property
    def batch_job(self) -> Job | None:
        """The job that the process is part of."""
        if not self.job:
            return None
        return Job(self.scheduler or "slurm", self.job, self.step, self.restart, self.cluster, self.inside)

    def same_process(self, other: Holder) -> bool:
        """Whether both describe one process."""
        return _identity(self) == _identity(other)

    def __str__(self) -> str:
        job = f", {self.batch_job}" if self.job else ""
        return f"process {self.pid} on {self.host}{job}, since {self.since}"


@dataclass(frozen=True)
class Verdict:
    """Whether a holder is gone (None: that cannot be told from here), and what is known of it, for a message."""

    gone: bool | None
    text: str = ""


def judge(
    holder: Holder, own: Holder, *, locked: bool | None = None, ask: Callable[[Job], JobState] = job_state
) -> Verdict:
    """Judge whether another process that holds a lock is gone.

    Parameters
    ----------
    holder, own : Holder
        That process, and this one.
    locked : bool or None
        Whether the holder's file is locked by some process, as far as this machine sees; None if files are not locked.
    ask : callable
        Asks the batch system about a job; only where nothing else tells.

    Returns
    -------
    Verdict
        A process that cannot be seen from here, and is not known to be part of a job that is over, is never gone.
    """
    same_kernel = bool(holder.boot) and holder.boot == own.boot
    if holder.host == own.host:
        if not (holder.boot and own.boot) or (same_kernel and holder.namespace in ("", own.namespace)):
            return _seen(holder, locked)
        # Two machines of one name are told apart by their numbers; earlier versions did not write them down.
        same_machine = holder.machine == own.machine != "" or not holder.token
        if not same_kernel and same_machine:
            return Verdict(True)
    if same_kernel and locked:
        return Verdict(False, "it runs in another container of this machine")
    if same_kernel and holder.locks and locked is False:
        return Verdict(True)  # as a container that has been started again
    job = holder.batch_job
    if job is None:
        seen = ", but its lock file is locked" if locked else ""
        return Verdict(None, f"whether it still runs cannot be seen from here{seen}")
    if job.restarted_as(own.batch_job):
        return Verdict(True)
    state = ask(job)
    text = state.text if state.over is not False else f"{state.text}; `{job.cancel}` would end it"
    return Verdict(state.over, text)


def _seen(holder: Holder, locked: bool | None) -> Verdict:
    """Judge a process of this machine."""
    try:
        os.kill(holder.pid, 0)
    except (ProcessLookupError, OverflowError):
        return Verdict(not locked, "a process that it has started lives on")
    except PermissionError:
        pass
    state, started = _process(holder.pid)
    if state in _DEAD or (holder.started and started and holder.started != started):
        return Verdict(not locked, "a process that it has started lives on")
    if state in _STOPPED:
        return Verdict(
            False, f"it is stopped: `kill -CONT {holder.pid}` lets it go on, `kill -KILL {holder.pid}` ends it"
        )
    return Verdict(False)


def _identity(holder: Holder) -> tuple[object, ...]:
    return holder.host, holder.pid, holder.started, holder.boot, holder.namespace


def _process(pid: int) -> tuple[str, str]:
    """State of a process and its start in clock ticks since boot, from /proc; "" where there is none."""
    try:
        # The second field is the command in parentheses and may contain blanks; the third is the state.
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return state, rest[18]
    except (OSError, IndexError, ValueError):
        return "", ""


def _namespace() -> str:
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _text(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""
