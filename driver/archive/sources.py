"""Open HDF5 files of archives, and what can be wrong with them."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import h5py

from driver.archive.journal_records import JournalError
from driver.archive.records import ArchiveError, StorageError
from driver.archive.schema import FORMAT, FORMAT_VERSION
from driver.archive.snapshot import SnapshotFile, StaleSnapshotError
from driver.archive.storage import Storage

TRIES = 20
"""How often to read again what a writer rewrites meanwhile."""


_PASSING = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT)
"""Errors of a file system that may work again later, and that say nothing of the archive."""


_FULL = {
    errno.ENOSPC: "no space left on the file system",
    errno.EDQUOT: "disk quota exceeded",
    errno.EFBIG: "file size limit reached",
}


class UnreadableError(ArchiveError):
    """An archive, or a part of it, is damaged: it can be opened or read no more."""

    @property
    def reason(self) -> str:
        """What cannot be read and why, without what to do."""
        return str(self.args[0])

    def __str__(self) -> str:
        return f"{self.reason}. `python -m driver verify` names what is damaged"


class Source(Protocol):
    """Where a view finds the open HDF5 file."""

    @property
    def path(self) -> Path:
        """Of the archive."""
        ...

    @property
    def h5(self) -> h5py.File:
        """The open file."""
        ...

    def stale(self) -> bool:
        """Whether what has been read last may mix two states of the file."""
        ...

    def reopen(self) -> None:
        """Open the newest state."""
        ...

    def close(self) -> None:
        """Close the file."""
        ...


class SnapshotSource:
    """The last commit as of its opening."""

    path: Path
    h5: h5py.File

    def __init__(self, path: Path, storage: Storage | None = None) -> None:
        self.path = path
        self._storage = storage
        self._open()

    def stale(self) -> bool:
        """Whether the writer has moved pages since the opening."""
        return self._file.stale

    def reopen(self) -> None:
        """Open the newest commit."""
        self.close()
        self._open()

    def close(self) -> None:
        """Close the file, whatever state it is in."""
        with contextlib.suppress(OSError, RuntimeError):
            self.h5.close()
        self._file.close()

    def _open(self) -> None:
        for _ in range(TRIES):
            self._file = SnapshotFile(self.path, storage=self._storage)
            try:
                self.h5 = h5py.File(self._file, "r")
                check_format(self.h5, self.path)
                return
            except BaseException:
                self._file.close()
                if not self._file.stale:
                    raise
        raise StaleSnapshotError(f"{self.path} is rewritten faster than it can be read")


def check_format(h5: h5py.File, path: Path, *, to_write: bool = False) -> None:
    """Raise `ArchiveError` unless a file is an archive of a version that this software reads (or writes)."""
    if h5.attrs.get("format") != FORMAT:
        raise ArchiveError(f"{path} is an HDF5 file, but no archive of Latdyn")
    version = str(h5.attrs["format_version"])
    major, minor = (int(part) for part in version.split("."))
    own_major, own_minor = (int(part) for part in FORMAT_VERSION.split("."))
    if major > own_major:
        raise ArchiveError(f"{path} has format {version}, this Latdyn reads {own_major}.x: update Latdyn to read it")
    if to_write and (major, minor) > (own_major, own_minor):
        raise ArchiveError(
            f"{path} has format {version}, this Latdyn writes {FORMAT_VERSION}: update Latdyn to write it"
        )


@contextlib.contextmanager
def clear_errors(path: Path) -> Iterator[None]:
    """Turn what goes wrong while opening or reading a file into an `ArchiveError` of one line."""
    try:
        yield
    except ArchiveError:
        raise
    except FileNotFoundError as error:
        raise ArchiveError(f"{path}: no such archive") from error
    except IsADirectoryError as error:
        raise ArchiveError(f"{path} is a folder, not an archive") from error
    except PermissionError as error:
        raise ArchiveError(f"{path}: no permission ({error.strerror})") from error
    except JournalError as error:
        raise ArchiveError(
            f"{path}: {error}. To go back to what {path.name} holds without it, move {path.name}.journal away"
        ) from error
    except (OSError, RuntimeError, ValueError, KeyError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno in _PASSING:
            raise ArchiveError(f"{path} cannot be read: {os.strerror(error.errno)}. Try again later") from error
        reason = str(error).strip("'\"").splitlines()[0] if str(error) else type(error).__name__
        if "file signature not found" in reason:
            raise ArchiveError(f"{path} is not an HDF5 file, so no archive") from error
        raise UnreadableError(f"{path} cannot be read: {reason}") from error


def storage_error(path: Path, error: OSError) -> StorageError:
    """Say in one line why a file system refuses to write."""
    reason = _FULL.get(error.errno or 0) or error.strerror or str(error)
    return StorageError(
        f"{path} cannot be written: {reason}. Nothing committed is lost; mend that and run the same command again"
    )


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn what the operating system raises while writing into a `StorageError`."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise storage_error(path, error) from error
