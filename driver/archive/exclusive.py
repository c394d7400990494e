"""A file that one process has at a time, on file systems whose locks reach from machine to machine, or do not.

The file names its holder. It appears under its name whole and at once (a link: of several processes, one succeeds), so
no lock of the file system is needed. Where there are such locks the file is locked, too: that shows whether its holder
lives to who cannot see its process.

Who finds a holder that is gone takes its place. Only one may do that: who has first created, in the same way, a
file whose name belongs to that one taking of the lock ("claim"), and then still finds the dead holder there. It renames
a file of its own over the lock, so that there is no moment without one. A claim whose owner dies is taken over as the
lock itself is. So nobody waits for a dead process, wherever that was when it died, and no clock is compared.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import re
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from driver.archive.holders import Holder, Verdict, judge
from driver.archive.queues import Job, JobState, job_state
from driver.archive.storage import Storage

SETTLE_SECONDS = 0.5
"""After taking over from a process of another machine: what that had under way may still arrive."""

_OLD_S = 24 * 3600.0
"""Files of interrupted starts that nothing is known of are removed after a day."""

_TRIES = 200
"""How often a lock may change hands while one process tries to get it."""

_STRAY = re.compile(r"\.[0-9a-f]{16}\.(new|next)\.lock")
"""Rest of the name of files that are there only while a lock is taken."""

_held: dict[str, int] = {}
"""Tokens of what this process holds, with its number: a forked child holds nothing."""


class HeldError(Exception):
    """Another process holds the file, or may hold it."""

    def __init__(self, path: Path, holder: Holder | None, verdict: Verdict) -> None:
        super().__init__(f"{path} is held by {holder or 'another process'}")
        self.path = path
        self.holder = holder
        self.verdict = verdict


@dataclass(frozen=True)
class _Found:
    """What is in a lock file: its holder, if it names one; what tells it from any other; whether it is locked."""

    holder: Holder | None
    token: str
    locked: bool | None


class ExclusiveFile:
    """The right to a file's name, held until `release`; gone with this process, however that ends.

    Parameters
    ----------
    path : Path
        Of the lock file. Others, named after it and ending with `.lock`, are beside it while it is taken.
    storage : Storage, optional
        The operating system, or a stand-in.
    holder : Holder, optional
        Who takes it; default: this process.
    ask : callable, optional
        Asks the batch system about a job.

    Attributes
    ----------
    path : Path
    holder : Holder

    Raises
    ------
    HeldError
        If another process holds it, or may hold it.
    OSError
        As the operating system does; `path` being something other than a file is one, too.
    """

    def __init__(
        self,
        path: Path,
        *,
        storage: Storage | None = None,
        holder: Holder | None = None,
        ask: Callable[[Job], JobState] = job_state,
    ) -> None:
        self.path = path
        self.holder = holder or Holder.present()
        self._storage = storage or Storage()
        self._ask = ask
        self._descriptors: dict[Path, int] = {}
        self._process = os.getpid()
        try:
            left = self._take(path)
            if left is not None:
                self._settle(left)
        except BaseException:
            self.release()
            raise
        _held[self.holder.token] = self._process

    def release(self) -> None:
        """Give the file up, if this process still has it; calling it again does nothing."""
        _held.pop(self.holder.token, None)
        if self.path in self._descriptors and os.getpid() == self._process:
            with contextlib.suppress(OSError):
                if self._is_ours():
                    self._storage.remove(self.path)
        self._close()

    # -- taking ------------------------------------------------------------------------------------------------------

    def _take(self, path: Path) -> _Found | None:
        """Get a name for this process; return what was there of a process that is gone."""
        for _ in range(_TRIES):
            found = self._look(path)
            if found is None:
                if self._create(path):
                    return None
                continue
            if found.token == self.holder.token:
                self._keep(path, self._storage.open(path, plain=True))
                return None  # created after all, although a server's answer was lost
            self._require_gone(path, found)
            if self._replace(path, found):
                return found
        raise HeldError(path, None, Verdict(None, "it changes hands all the time"))

    def _create(self, path: Path) -> bool:
        """Create a file that names this process, if there is none of that name."""
        new = self._name("new")
        descriptor = self._write(new)
        try:
            if self._storage.link(new, path):
                self._keep(path, descriptor)
                return True
        except FileExistsError:
            self._storage.close(descriptor)
            return False
        except BaseException:
            self._storage.close(descriptor)
            raise
        finally:
            self._storage.remove(new)
        self._storage.close(descriptor)
        try:
            self._keep(path, self._write(path))
        except FileExistsError:
            return False
        found = self._look(path)  # another process may have found it before it named this one
        return found is not None and found.token == self.holder.token

    def _replace(self, path: Path, found: _Found) -> bool:
        """Put a file that names this process in the place of one whose holder is gone, unless another one has."""
        claim = self._name("next", found.token)
        self._take(claim)
        try:
            now = self._look(path)
            if now is None or now.token != found.token:
                return False
            new = self._name("new")
            self._keep(path, self._write(new))
            self._storage.replace(new, path)
            return True
        finally:
            self._storage.remove(claim)
            self._storage.close(self._descriptors.pop(claim))

    # -- judging -----------------------------------------------------------------------------------------------------

    def _require_gone(self, path: Path, found: _Found) -> None:
        """Raise unless the holder is gone."""
        if found.holder is None:
            verdict = self._judge_unnamed(path, found)
        elif _held.get(found.holder.token) == os.getpid():
            verdict = Verdict(False)
        elif found.holder.same_process(self.holder):
            verdict = Verdict(not found.locked)  # given up, but could not be removed
        else:
            verdict = judge(found.holder, self.holder, locked=found.locked, ask=self._ask)
        if not verdict.gone:
            raise HeldError(path, found.holder, verdict)

    def _judge_unnamed(self, path: Path, found: _Found) -> Verdict:
        """Judge a file that names nobody, as after a power loss: not where it is locked, or just being written."""
        if found.locked:
            return Verdict(False)
        time.sleep(SETTLE_SECONDS)
        now = self._look(path)
        return Verdict(now is not None and now.token == found.token and not now.locked)

    def _settle(self, left: _Found) -> None:
        """Wait where the last holder was on another machine, or locks do not work, and see that nothing has changed."""
        own, before = self.holder, left.holder
        near = before is not None and (before.host == own.host or (before.boot == own.boot != ""))
        if not (near and left.locked is False):
            time.sleep(SETTLE_SECONDS)
            now = self._look(self.path)
            if now is None or now.token != self.holder.token:
                raise HeldError(self.path, now.holder if now else None, Verdict(False, "it has just taken over"))
        self._sweep()

    def _sweep(self) -> None:
        """Remove what killed starts have left; only the holder may."""
        ask = functools.cache(self._ask)
        with contextlib.suppress(OSError):
            now = self.path.stat().st_mtime  # of the same server's clock
            for left in self.path.parent.iterdir():
                if not left.name.startswith(self.path.stem) or not _STRAY.fullmatch(left.name, len(self.path.stem)):
                    continue
                found = self._look(left)
                if found is None or found.token == self.holder.token:
                    continue
                verdict = Verdict(None)
                if found.holder is not None:
                    verdict = judge(found.holder, self.holder, locked=found.locked, ask=ask)
                if verdict.gone or (verdict.gone is None and left.stat().st_mtime < now - _OLD_S):
                    self._storage.remove(left)

    # -- files -------------------------------------------------------------------------------------------------------

    def _name(self, purpose: str, token: str | None = None) -> Path:
        """Name of another file of this lock: such as archive.h5.<token>.new.lock for archive.h5.lock."""
        return self.path.with_name(f"{self.path.stem}.{token or self.holder.token}.{purpose}.lock")

    def _write(self, path: Path) -> int:
        """Create a file that names this process, and lock it; return its descriptor."""
        descriptor = self._storage.open(path, write=True, new=True)
        try:
            locks = self._storage.lock(descriptor, exclusive=True) is True
            self._storage.write_at(descriptor, replace(self.holder, locks=locks).to_bytes(), 0)
            self._storage.sync(descriptor)
        except BaseException:
            with contextlib.suppress(OSError):
                self._storage.remove(path)
            self._storage.close(descriptor)
            raise
        return descriptor

    def _keep(self, path: Path, descriptor: int) -> None:
        before = self._descriptors.pop(path, -1)
        if before >= 0:
            self._storage.close(before)
        self._descriptors[path] = descriptor

    def _look(self, path: Path) -> _Found | None:
        """Return what a lock file says; None if there is none."""
        try:
            if not stat.S_ISREG(path.lstat().st_mode):
                raise OSError(errno.EINVAL, "it is no regular file, so no lock of Latdyn's; remove it", str(path))
            descriptor = self._storage.open(path, plain=True)
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno == errno.ESTALE:
                return None
            raise
        try:
            granted = self._storage.lock(descriptor, exclusive=False)
            data = self._storage.read_all(descriptor)
            holder = Holder.parse(data)
            # Files of earlier versions, and torn ones, are told apart by what they are.
            made = f"{os.fstat(descriptor).st_ino}".encode() + data
            token = holder.token if holder and holder.token else hashlib.blake2b(made, digest_size=8).hexdigest()
            return _Found(holder, token, None if granted is None else not granted)
        except OSError as error:
            if error.errno == errno.ESTALE:
                return None
            raise
        finally:
            self._storage.close(descriptor)

    def _is_ours(self) -> bool:
        found = self._look(self.path)
        same = os.path.samestat(os.fstat(self._descriptors[self.path]), self.path.lstat())
        return same and found is not None and found.token == self.holder.token

    def _close(self) -> None:
        while self._descriptors:
            _, descriptor = self._descriptors.popitem()
            with contextlib.suppress(OSError):
                self._storage.close(descriptor)
