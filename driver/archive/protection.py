"""What no command may replace, whatever name leads there: archives, their journals and locks, a campaign's files."""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import h5py

from driver.archive.journal import journal_path
from driver.archive.journal_records import MAGIC as JOURNAL_MAGIC
from driver.archive.records import ArchiveError, StorageError
from driver.archive.schema import FORMAT

COMPANIONS = (".journal", ".lock", ".new", ".part")
"""What the names of files beside an archive end in."""

ARCHIVE_NAME = "archive.h5"
_CAMPAIGN_FILES = (ARCHIVE_NAME, "config.yaml", "driver.log")
"""What a campaign keeps in its folder."""

_HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"

_FULL = {
    errno.ENOSPC: "no space left on the file system",
    errno.EDQUOT: "disk quota exceeded",
    errno.EFBIG: "file size limit reached",
}


class OutputError(ArchiveError):
    """An output cannot be written where it was asked for; the message says why, and what to do."""


def check_new_archive(path: Path) -> None:
    """Raise `OutputError` unless an archive may come into being under this name."""
    with output_errors(path):
        if os.path.lexists(path):
            raise OutputError(f"{path} exists already: choose another name")
        target = resolved(path)
        protect(path, target, ())
        check_parent(path, target)
        for left in (journal_path(target), target.with_name(target.name + ".lock")):
            if os.path.lexists(left):
                raise OutputError(
                    f"{left} belongs to an archive that is not here: move it away, or choose another name"
                )


def is_archive(path: Path) -> bool:
    """Return whether a file is an archive of Latdyn, or may be one: an HDF5 file that cannot be read."""
    if not _starts_with(path, _HDF5_SIGNATURE):
        return False
    if journal_path(path).exists():
        return True
    try:
        with h5py.File(path, "r", locking=False) as h5:
            return bool(h5.attrs.get("format") == FORMAT)
    except (OSError, RuntimeError, ValueError, KeyError):
        return True


@contextlib.contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn what the operating system raises while an output is written into one line that names the output.

    Raises
    ------
    StorageError
        If there is no space left: the same command will do once there is.
    OutputError
        Otherwise.
    """
    try:
        yield
    except OSError as error:
        number = _number(error)
        if number is None:
            raise
        if number in _FULL:
            raise StorageError(
                f"{path} cannot be written: {_FULL[number]}. What stood there is unchanged; make room and run the same "
                "command again"
            ) from error
        raise OutputError(f"{path} cannot be written: {os.strerror(number)}") from error


def _number(error: OSError) -> int | None:
    """Return the operating system's error; HDF5 names it in its text only."""
    if error.errno is not None:
        return error.errno
    found = re.search(r"\berrno = (\d+)", str(error))
    return int(found[1]) if found else None


def resolved(path: Path) -> Path:
    """Return the place that a path leads to, every link followed."""
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:  # Python 3.13 and before raise RuntimeError for links that lead in circles
        raise OutputError(f"{path} leads nowhere: its links form a circle") from error


def protect(path: Path, target: Path, archives: Sequence[Path]) -> None:
    """Raise `OutputError` if a place belongs to an archive or a campaign."""
    what = _belongs_to(target, archives)
    if what:
        named = f"{path} is {what}" if path.resolve() == path.absolute() else f"{path} leads to {target}: {what}"
        raise OutputError(f"{named}, which no command replaces: choose another name")


def _belongs_to(target: Path, archives: Sequence[Path]) -> str:
    """Return what of an archive or a campaign a place is, or an empty text."""
    for archive in (*archives, *(archive.resolve() for archive in archives)):
        if any(_same(target, archive.with_name(archive.name + end)) for end in ("", *COMPANIONS)):
            return f"the archive {archive}, or a file of it"
    if is_archive(target):
        return "an archive"
    if _starts_with(target, JOURNAL_MAGIC):
        return "the journal of an archive"
    base = target
    while base.suffix in COMPANIONS:
        base = base.with_suffix("")
        if is_archive(base):
            return f"a name that the archive {base} keeps for its own files"
    if target.name in _CAMPAIGN_FILES and target.with_name(ARCHIVE_NAME).exists():
        return "a file of a campaign"
    return ""


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False


def _starts_with(path: Path, magic: bytes) -> bool:
    try:
        if not path.is_file():  # reading a pipe would wait for ever
            return False
        with path.open("rb") as file:
            return file.read(len(magic)) == magic
    except OSError:
        return False


def check_parent(path: Path, target: Path) -> None:
    """Raise `OutputError` unless what does not exist yet can be made."""
    ancestor = next(folder for folder in target.parents if folder.exists())
    if not ancestor.is_dir():
        raise OutputError(f"{path} cannot be written: {ancestor} is a file, not a folder")
    if not os.access(ancestor, os.W_OK | os.X_OK):
        raise OutputError(f"{path} cannot be written: no permission to write in {ancestor}")
