"""Who writes an archive: a lock file that names its holder, taken over only when the holder is provably gone."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

from driver.archive.exclusive import ExclusiveFile, HeldError
from driver.archive.holders import Holder
from driver.archive.queues import Job, JobState, job_state
from driver.archive.records import ArchiveError
from driver.archive.storage import Storage, beside

_REFUSED = {errno.EACCES, errno.EPERM, errno.EINVAL, errno.ELOOP, errno.EISDIR}


class WriterLock:
    """Exclusive right to write one archive, held until `release`.

    Parameters
    ----------
    path : Path
        Of the archive; the lock file is `<path>.lock`, beside the archive itself where the path is a symbolic link.
    storage : Storage, optional
        The operating system, or a stand-in.
    holder : Holder, optional
        Who takes it; default: this process.
    ask : callable, optional
        Asks the batch system about a job.

    Raises
    ------
    ArchiveError
        If another process holds it, or may hold it.
    """

    def __init__(
        self,
        path: Path,
        *,
        storage: Storage | None = None,
        holder: Holder | None = None,
        ask: Callable[[Job], JobState] = job_state,
    ) -> None:
        self.path = beside(path, ".lock")
        try:
            self._file = ExclusiveFile(self.path, storage=storage, holder=holder, ask=ask)
        except HeldError as held:
            raise ArchiveError(f"{path} is being written by {_described(held)}") from held
        except OSError as error:
            if error.errno not in _REFUSED:
                raise
            # What is there already is in the way; or else nothing may be written beside the archive.
            there = self.path if os.path.lexists(self.path) else self.path.parent
            raise ArchiveError(f"{path} cannot be locked: {there}: {error.strerror}") from error

    def release(self) -> None:
        """Give the lock back, if this process still has it; calling it again does nothing."""
        self._file.release()


def _described(held: HeldError) -> str:
    """Say who holds a lock, what is known of it, and what to do."""
    text = str(held.holder or "another process")
    if held.verdict.text:
        text += f": {held.verdict.text}"
    if held.verdict.gone is None:
        text += f". If that process is gone, remove {held.path}"
    return text
