"""Where commands write what they make: under another name first, and never over what Latdyn did not write.

Every output is made in a folder of its own beside its place and renamed when it is whole, so that whatever is killed
leaves what stood there before. What belongs to an archive or a campaign is never replaced, whatever name leads there. A
file or folder of the user's is not either, unless they say so: a folder that Latdyn wrote has a list of its files and
their digests (`.latdyn.json`); a single file is recognised by what is in it, by whoever knows the format.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from driver.archive.protection import (
    ARCHIVE_NAME,
    OutputError,
    check_parent,
    is_archive,
    output_errors,
    protect,
    resolved,
)

MANIFEST = ".latdyn.json"
"""The list of what Latdyn wrote in a folder."""


def unrecognised(path: Path) -> bool:
    """Recognise no file: whatever exists is somebody's."""
    return False


@dataclass(frozen=True)
class OutputFile:
    """A single file to write.

    Parameters
    ----------
    path : Path
        As the user named it.
    ours : callable
        Whether an existing, non-empty file is an earlier output of the same kind, so that it may be replaced.
    overwrite : bool
        The user has said that whatever file stands there may be replaced. An archive still may not.
    archives : sequence of Path
        What the command reads.

    Raises
    ------
    OutputError
        At once, before anything is computed, if the file cannot or must not be written.
    """

    path: Path
    ours: Callable[[Path], bool] = unrecognised
    overwrite: bool = False
    archives: Sequence[Path] = ()

    def __post_init__(self) -> None:
        with output_errors(self.path):
            self._target()

    @contextlib.contextmanager
    def writing(self) -> Iterator[Path]:
        """Yield where to write the file; it takes its place when the block ends without an exception.

        Raises
        ------
        OutputError, StorageError
            If the file system refuses, or a file of somebody else's has appeared meanwhile.
        """
        with output_errors(self.path):
            target = self._target()
            target.parent.mkdir(parents=True, exist_ok=True)
            with _staging(target.parent, target.name) as folder:
                made = folder / target.name
                yield made
                _sync(made)
                if self._target().exists():
                    shutil.copymode(target, made)
                made.replace(target)

    def _target(self) -> Path:
        """Return the file that the path leads to, every link followed."""
        target = resolved(self.path)
        protect(self.path, target, self.archives)
        if target.is_dir():
            raise OutputError(f"{self.path} is a folder: name a file, such as {self.path / 'output'}")
        if not target.exists():
            check_parent(self.path, target)
        elif not target.is_file():
            raise OutputError(f"{self.path} is neither a file nor a folder: choose another name")
        elif not self.overwrite and target.stat().st_size and not self.ours(target):
            raise OutputError(f"{self.path} exists, and nothing shows that this command wrote it: {_WAYS_OUT}")
        return target


@dataclass(frozen=True)
class OutputFolder:
    """A folder to write files into; whatever else is in it stays.

    Parameters
    ----------
    path : Path
    kind : str
        What is written, as `report`; of an earlier output of this kind, files that are not written again are removed.
    overwrite, archives
        See `OutputFile`.

    Raises
    ------
    OutputError
        At once, if the folder cannot be written to, holds something that Latdyn did not write and nothing that it
        did, or a file that has been changed since Latdyn wrote it.
    """

    path: Path
    kind: str
    overwrite: bool = False
    archives: Sequence[Path] = ()

    def __post_init__(self) -> None:
        with output_errors(self.path):
            self._target()

    @contextlib.contextmanager
    def writing(self) -> Iterator[Path]:
        """Yield a folder to write into; its files take their places when the block ends without an exception.

        All of them are whole before the first takes its place, and a new folder appears with all of them.

        Raises
        ------
        OutputError, StorageError
            If the file system refuses, or a file of somebody else's would be replaced.
        """
        with output_errors(self.path):
            target = self._target()
            fresh = not target.exists()
            place = target.parent if fresh else target
            place.mkdir(parents=True, exist_ok=True)
            with _staging(place, target.name) as folder:
                made = folder / target.name
                made.mkdir()
                yield made
                written = {name: _Entry(self.kind, (_digest(made / name),)) for name in _files(made)}
                for name in written:
                    _sync(made / name)
                if fresh and not target.exists():
                    _write_manifest(made, made, written)
                    made.rename(target)
                else:
                    self._replace(made, self._target(), written)

    def _replace(self, made: Path, target: Path, written: Mapping[str, _Entry]) -> None:
        known = _manifest(target)
        for name in written:
            self._check_file(target, name, known)
        stale = {name: entry for name, entry in known.items() if entry.kind == self.kind and name not in written}
        # The list names what either state holds throughout, so that a command that is killed here can be run again.
        both = {
            name: _Entry(self.kind, (*known[name].digests, *entry.digests) if name in known else entry.digests)
            for name, entry in written.items()
        }
        _write_manifest(made, target, {**known, **both})
        for name in sorted(written, key=lambda name: name.count("/"), reverse=True):  # a page after its figures
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (made / name).replace(target / name)
        for name, entry in stale.items():
            if _is_entry(target / name, entry):
                (target / name).unlink()
        kept = {name: entry for name, entry in known.items() if name not in stale}
        _write_manifest(made, target, {**kept, **written})

    def _check_file(self, target: Path, name: str, known: Mapping[str, _Entry]) -> None:
        place = target / name
        protect(self.path / name, resolved(place), self.archives)
        if place.is_dir() or not (self.overwrite or name in known or not os.path.lexists(place)):
            raise OutputError(f"{self.path / name} exists, and Latdyn did not write it: {_WAYS_OUT}")

    def _target(self) -> Path:
        target = resolved(self.path)
        protect(self.path, target, self.archives)
        if not target.exists():
            if target.suffix.lower() in _OF_FILES:
                raise OutputError(f"{self.path} names a file, but a {self.kind} is a folder: name it without a suffix")
            check_parent(self.path, target)
            return target
        if not target.is_dir():
            raise OutputError(f"{self.path} is a file: name a folder")
        if is_archive(target / ARCHIVE_NAME):
            raise OutputError(f"{self.path} is the folder of a campaign: name a folder in it, or another one")
        if not os.access(target, os.W_OK | os.X_OK):
            raise OutputError(f"{self.path} cannot be written: {os.strerror(errno.EACCES)}")
        known = _manifest(target)
        if self.overwrite:
            return target
        if not known and any(not _LEFT.search(entry.name) for entry in target.iterdir()):
            raise OutputError(f"{self.path} holds files that Latdyn did not write: {_WAYS_OUT}")
        for name, entry in known.items():
            if entry.kind == self.kind and os.path.lexists(target / name) and not _is_entry(target / name, entry):
                raise OutputError(f"{self.path / name} has been changed since Latdyn wrote it: {_WAYS_OUT}")
        return target


_OF_FILES = (".csv", ".h5", ".hdf5", ".htm", ".html", ".json", ".md", ".pdf", ".png", ".svg", ".txt", ".yaml", ".yml")
"""Suffixes by which nobody names a folder."""

_WAYS_OUT = "choose another name, move it away, or add --overwrite"


@dataclass(frozen=True)
class _Entry:
    """A file that Latdyn wrote: as part of what, and the digests that it may have."""

    kind: str
    digests: tuple[str, ...]


_NAME_LENGTH = 100
"""So much of an output's name is in that of its folder, which must not become too long for a file system."""

_LEFT = re.compile(r"\.(?P<host>[^.]*)-(?P<pid>\d+)-[0-9a-f]{8}\.part$")
"""What the name of a folder for what is not whole yet ends in: who is at work there."""


@contextlib.contextmanager
def _staging(parent: Path, name: str) -> Iterator[Path]:
    """Make a folder for what is not whole yet, and remove it in the end, with those of processes that were killed."""
    name = name[:_NAME_LENGTH]
    host = os.uname().nodename.partition(".")[0]
    for left in parent.glob(f"{glob.escape(name)}.*.part"):
        found = _LEFT.fullmatch(left.name.removeprefix(name))
        if found and found["host"] == host and not _is_alive(int(found["pid"])):
            shutil.rmtree(left, ignore_errors=True)
    folder = parent / f"{name}.{host}-{os.getpid()}-{secrets.token_hex(4)}.part"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_entry(path: Path, entry: _Entry) -> bool:
    """Return whether a file is, byte for byte, what Latdyn wrote."""
    return path.is_file() and not path.is_symlink() and _digest(path) in entry.digests


def _manifest(folder: Path) -> dict[str, _Entry]:
    """Return what Latdyn wrote in a folder; nothing where there is no list, or one that is not Latdyn's."""
    try:
        listed = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
        entries = {str(name): _Entry(str(e["kind"]), tuple(map(str, e["sha256"]))) for name, e in listed.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
    return {name: entry for name, entry in entries.items() if _is_inside(PurePosixPath(name))}


def _is_inside(name: PurePosixPath) -> bool:
    return not name.is_absolute() and ".." not in name.parts


def _write_manifest(made: Path, folder: Path, entries: Mapping[str, _Entry]) -> None:
    """Replace a folder's list; it is written in `made` first."""
    files = {name: {"kind": entry.kind, "sha256": list(entry.digests)} for name, entry in sorted(entries.items())}
    new = made / MANIFEST
    new.write_text(json.dumps({"written_by": "Latdyn", "files": files}, indent=1) + "\n", encoding="utf-8")
    _sync(new)
    new.replace(folder / MANIFEST)
