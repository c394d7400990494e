"""Who writes an archive: a lock file that names its holder, taken over only when the holder is provably gone."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from driver.archive.records import ArchiveError
from driver.archive.storage import Storage

_SETTLE_SECONDS = 0.5
_DEAD = "dead"


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
        What tells this boot of the host from others; "" where the system does not say.
    job, restart : str
        Slurm's job id and restart count, or "".
    since : str
        Local time at which the lock was taken.
    """

    host: str
    pid: int
    started: str = ""
    boot: str = ""
    job: str = ""
    restart: str = ""
    since: str = ""

    @classmethod
    def present(cls) -> Holder:
        """Describe this process."""
        return cls(
            host=socket.gethostname(),
            pid=os.getpid(),
            started=_process_start(os.getpid()),
            boot=_boot(),
            job=os.environ.get("SLURM_JOB_ID", ""),
            restart=os.environ.get("SLURM_RESTART_COUNT", ""),
            since=time.strftime("%Y-%m-%d %H:%M:%S"),
        )

    def same_process(self, other: Holder) -> bool:
        """Whether both describe one process."""
        return (self.host, self.pid, self.started, self.boot) == (other.host, other.pid, other.started, other.boot)

    def __str__(self) -> str:
        job = f", Slurm job {self.job}" if self.job else ""
        return f"process {self.pid} on {self.host}{job}, since {self.since}"


class WriterLock:
    """Exclusive right to write one archive, held until `release`.

    Parameters
    ----------
    path : Path
        Of the archive; the lock file is `<path>.lock`.
    storage : Storage
        The operating system, or a stand-in.

    Raises
    ------
    ArchiveError
        If another process holds it, or may hold it.
    """

    def __init__(self, path: Path, *, storage: Storage | None = None) -> None:
        self._archive = path
        self.path = path.with_name(path.name + ".lock")
        self._storage = storage or Storage()
        self._holder = Holder.present()
        self._descriptor = self._acquire()

    def release(self) -> None:
        """Give the lock back, if this process still has it; calling it again does nothing."""
        if self._descriptor < 0:
            return
        with contextlib.suppress(OSError):
            ours = self._still_named(self._descriptor) and _read(self._storage, self._descriptor) == self._holder
            if ours and os.getpid() == self._holder.pid:
                self._storage.remove(self.path)
        self._storage.close(self._descriptor)
        self._descriptor = -1

    def _acquire(self) -> int:
        """Lock the file itself where locks work: of two processes that find it stale, only one goes on."""
        while True:
            descriptor = self._storage.open(self.path, write=True, create=True)
            try:
                granted = self._storage.lock(descriptor, exclusive=True)
                if not self._still_named(descriptor):  # released between opening and locking
                    self._storage.close(descriptor)
                    continue
                holder = _read(self._storage, descriptor)
                if granted is False:
                    raise ArchiveError(f"{self._archive} is being written by {holder or 'another process'}")
                left_by_us = granted is True and holder is not None and holder.same_process(self._holder)
                if holder is not None and not left_by_us and not _is_gone(holder, self._holder):
                    raise ArchiveError(
                        f"{self._archive} is being written by {holder}. If that process is gone, remove {self.path}"
                    )
                self._write(descriptor)
                if granted is None:  # without locks, of two processes that found it stale the later one goes on
                    time.sleep(_SETTLE_SECONDS)
                    if _read(self._storage, descriptor) != self._holder:
                        raise ArchiveError(f"{self._archive} has just been taken over by another process")
            except BaseException:
                with contextlib.suppress(OSError):
                    self._storage.close(descriptor)
                raise
            return descriptor

    def _still_named(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), self.path.stat())
        except FileNotFoundError:
            return False

    def _write(self, descriptor: int) -> None:
        text = json.dumps(asdict(self._holder)).encode() + b"\n"
        self._storage.resize(descriptor, 0)
        self._storage.write_at(descriptor, text, 0)
        self._storage.sync(descriptor)


def _read(storage: Storage, descriptor: int) -> Holder | None:
    """Return the holder that a lock file names; None if it is empty or torn, as after a power loss."""
    try:
        values = json.loads(storage.read_all(descriptor))
        known = {field.name for field in fields(Holder)}
        return Holder(**{name: value for name, value in values.items() if name in known})
    except (ValueError, TypeError, AttributeError):
        return None


def _is_gone(holder: Holder, own: Holder) -> bool:
    """Return whether a holder is provably gone, as seen by `own`."""
    if holder.job and holder.job == own.job and int(own.restart or 0) > int(holder.restart or 0):
        return True  # Slurm ends a job before it starts it again
    if holder.host != own.host:
        return False
    if holder.boot and own.boot and holder.boot != own.boot:
        return True
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return True
    except PermissionError:
        pass
    started = _process_start(holder.pid)
    return started == _DEAD or bool(holder.started and started and holder.started != started)


def _process_start(pid: int) -> str:
    """Start time of a process in clock ticks since boot, from /proc; "" where there is none, `_DEAD` for a zombie."""
    try:
        # The second field is the command in parentheses and may contain blanks; the third is the state.
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return _DEAD if state in "ZX" else rest[18]
    except (OSError, IndexError, ValueError):
        return ""


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
