"""Results on disk that many processes need and one of them makes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

POLL_S = 0.2
"""Between two attempts to get the lock; short waits rather than one long call, so that signals are seen."""

_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}


def made_once(target: Path, make: Callable[[Path], None]) -> Path:
    """Return a folder, made by whichever process comes first while the others wait for it.

    The folder appears under its name only when it is complete: it is made beside it and renamed. A maker that is
    killed leaves a folder that nobody looks at, and the next one in the queue makes it anew. Where the file system has
    no locks, several processes may do the same work; the first to finish wins.

    Parameters
    ----------
    target : Path
        The folder.
    make : callable
        Fills the empty folder that it is given.
    """
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with _locked(target.with_name(f"{target.name}.lock")) as exclusive:
        if target.is_dir():
            return target
        if exclusive:
            for left in target.parent.glob(f"{target.name}.*.part"):
                shutil.rmtree(left, ignore_errors=True)
        part = target.with_name(f"{target.name}.{uuid.uuid4().hex}.part")
        part.mkdir()
        try:
            make(part)
            _publish(part, target)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return target


def _publish(part: Path, target: Path) -> None:
    for path in part.rglob("*"):
        if path.is_file():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
    try:
        part.rename(target)
    except OSError:
        if not target.is_dir():  # else somebody was faster, without locks
            raise


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Hold a lock that ends with its process, however that ends; yield whether there really is one."""
    with path.open("a") as stream:
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                exclusive = True
                break
            except BlockingIOError:
                time.sleep(POLL_S)
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
                exclusive = False
                break
        yield exclusive
