"""Downloading one file over HTTP so that it is either there, whole and checked, or not there.

Data go to `<target>.part`, which a later attempt continues if the server still has the same file (its ETag or date is
kept in `<target>.part.validator`); the finished file is renamed, with its checksum in `<target>.sha256` beside it.
"""

from __future__ import annotations

import fcntl
import hashlib
import http.client
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from driver.atomic import write_atomically
from driver.errors import UsageError

Progress = Callable[[int, int | None], None]
"""Called with the bytes that are there and their total, None if the server does not say."""

_CHUNK_BYTES = 1 << 20
_TEMPORARY_STATUS = {408, 429, 500, 502, 503, 504}


class ChecksumError(UsageError):
    """What was received is not what it should be."""


class _BrokenOffError(Exception):
    """The transfer broke off in a way that trying again may mend."""


@dataclass(frozen=True)
class Retries:
    """How often a transfer is tried, and the pause after the first failure, doubled after each further one.

    An attempt that brought data does not count.
    """

    attempts: int = 5
    pause_s: float = 1.0
    timeout_s: float = 60.0


def download(
    url: str,
    target: Path,
    *,
    sha256: str = "",
    check: Callable[[Path], None] | None = None,
    progress: Progress | None = None,
    retries: Retries | None = None,
) -> str:
    """Download a file, continuing what an earlier attempt has left.

    Parameters
    ----------
    url : str
        http or https.
    target : Path
        Appears, or is replaced, only when the whole file has been received and checked.
    sha256 : str
        What the file must have; "" if unknown.
    check : callable, optional
        Is given the whole file before it appears, and raises `UsageError` if it is not what it should be.
    progress : callable, optional
    retries : Retries, optional

    Returns
    -------
    str
        The sha256 of the file, also recorded in `<target>.sha256`.

    Raises
    ------
    UsageError
        If the server cannot be reached or has no such file, the disk cannot be written, another process is at the same
        download, or the checksum is wrong; the message says what to do.
    """
    if not url.startswith(("http://", "https://")):
        raise UsageError(f"cannot download {url!r}: only http and https addresses are fetched")
    part = target.with_name(target.name + ".part")
    with _opened(part) as stream:
        received = _transfer(url, stream, part, target, progress or _silent, retries or Retries())
        with _local(part):
            found = hash_file(part)
            try:
                _check(url, part, found, received, sha256, check)
            except UsageError:
                part.unlink(missing_ok=True)
                _validator_path(part).unlink(missing_ok=True)
                raise
            record_sha256(target, found)
            part.replace(target)
            _validator_path(part).unlink(missing_ok=True)
    return found


def _check(
    url: str, part: Path, found: str, received: str | None, sha256: str, check: Callable[[Path], None] | None
) -> None:
    """Refuse a whole file that is not what it should be."""
    if received not in (None, found):  # where locks do not reach, as on some parallel file systems
        raise UsageError(
            f"another process wrote to {part} meanwhile; it was thrown away: run this again, one at a time"
        )
    if sha256 and found != sha256.lower():
        raise ChecksumError(f"{url}: the file received has sha256 {found}, not {sha256}; it was thrown away")
    if check is not None:
        check(part)


def hash_file(path: Path) -> str:
    """Return the sha256 of a file, hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def record_sha256(path: Path, sha256: str) -> None:
    """Write `<path>.sha256`, in the format of sha256sum."""
    with _local(record_file(path)):
        write_atomically(record_file(path), f"{sha256}  {path.name}\n")


def record_file(path: Path) -> Path:
    """Return the file that holds the checksum of another."""
    return path.with_name(path.name + ".sha256")


def recorded_sha256(path: Path) -> str:
    """Return the checksum in `<path>.sha256`; "" if there is none."""
    try:
        words = record_file(path).read_text().split()
    except FileNotFoundError:
        return ""
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read {record_file(path)} ({error}); check its permissions, or remove it") from error
    return words[0] if words else ""


@contextmanager
def progress_bar(label: str) -> Iterator[Progress]:
    """Show a bar with rate and remaining time on a terminal while a download runs."""
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Bar(TextColumn("{task.description}"), *columns) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _silent(done: int, total: int | None) -> None:
    """Report nothing."""


@contextmanager
def _local(path: Path) -> Iterator[None]:
    """Tell what fails on this machine from what fails on the way to the server."""
    try:
        yield
    except OSError as error:
        raise UsageError(f"cannot write {path} ({error.strerror}); make room, or choose another folder") from error


@contextmanager
def _opened(part: Path) -> Iterator[FileIO]:
    """Open the unfinished file for appending and keep other processes off it."""
    with _local(part):
        part.parent.mkdir(parents=True, exist_ok=True)
        stream = part.open("ab", buffering=0)
    with stream:
        _lock(stream, part)
        try:
            yield stream
        finally:
            with suppress(OSError):
                if part.stat().st_size == 0:
                    part.unlink()


def _lock(stream: FileIO, part: Path) -> None:
    with suppress(OSError):  # a file system without locks: two downloads at once would at worst fail their checksum
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(f"another process is downloading {part}; wait for it") from error
    # Another process may have finished and renamed the file between its opening and its locking here.
    if not part.exists() or not os.path.samestat(part.stat(), os.fstat(stream.fileno())):
        raise UsageError(f"another process has just finished downloading {part}; run this again")


def _transfer(url: str, stream: FileIO, part: Path, target: Path, progress: Progress, retries: Retries) -> str | None:
    """Append to the part until it is whole; return the sha256 of what came, None if nothing was left to come."""
    failures = 0
    while True:
        before = os.fstat(stream.fileno()).st_size
        try:
            return _receive(url, stream, part, progress, retries.timeout_s)
        except _BrokenOffError as error:
            failures = 1 if os.fstat(stream.fileno()).st_size > before else failures + 1
            if failures >= retries.attempts:
                raise UsageError(
                    f"cannot download {url} ({error}); check the connection and try again, which continues, or copy "
                    f"the file from a machine with internet access to {target}"
                ) from error
            time.sleep(retries.pause_s * 2 ** (failures - 1))


def _receive(url: str, stream: FileIO, part: Path, progress: Progress, timeout_s: float) -> str | None:
    """Make one request and append what it brings; see `_transfer`."""
    offset = os.fstat(stream.fileno()).st_size
    validator = _read_validator(part)
    headers = {"User-Agent": "latdyn", "Accept-Encoding": "identity"}
    if offset and validator:
        headers |= {"Range": f"bytes={offset}-", "If-Range": validator}
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout_s) as response:
            return _append(response, url, stream, part, progress)
    except urllib.error.HTTPError as error:
        if error.code == 416 and offset:  # nothing beyond what is there: whole already, or of another size
            if error.headers.get("Content-Range", "").endswith(f"/{offset}"):
                return None
            stream.truncate(0)
            raise _BrokenOffError("the unfinished file does not fit what the server has") from error
        if error.code in _TEMPORARY_STATUS:
            raise _BrokenOffError(f"the server answered {error.code} {error.reason}") from error
        raise UsageError(f"cannot download {url}: the server answered {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise _BrokenOffError(str(getattr(error, "reason", "")) or str(error) or type(error).__name__) from error


def _append(response: http.client.HTTPResponse, url: str, stream: FileIO, part: Path, progress: Progress) -> str:
    if "text/html" in response.headers.get("Content-Type", ""):
        raise UsageError(f"cannot download {url}: the server answered with a web page; check the address")
    done = os.fstat(stream.fileno()).st_size
    if response.status == 206:
        span = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
        if span is None or int(span[1]) != done:
            stream.truncate(0)
            raise _BrokenOffError("the server continued at another place")
        total: int | None = int(span[2])
        with _local(part), part.open("rb") as before:
            digest = hashlib.file_digest(before, "sha256")
    else:
        stream.truncate(0)
        done, digest = 0, hashlib.sha256()
        length = response.headers.get("Content-Length")
        total = int(length) if length else None
        with _local(part):
            _validator_path(part).write_text(_validator(response))
    progress(done, total)
    while chunk := response.read(_CHUNK_BYTES):
        with _local(part):
            _write(stream, chunk)
        digest.update(chunk)
        done += len(chunk)
        progress(done, total)
    if total is not None and done != total:
        raise _BrokenOffError(f"the connection broke off after {done} of {total} bytes")
    with _local(part):
        os.fsync(stream.fileno())
    return digest.hexdigest()


def _write(stream: FileIO, data: bytes) -> None:
    """Write all of it: an unbuffered stream may take less."""
    rest = memoryview(data)
    while rest:
        rest = rest[stream.write(rest) :]


def _validator(response: http.client.HTTPResponse) -> str:
    """Return what tells this version of the file from others; a weak ETag does not."""
    etag = response.headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else response.headers.get("Last-Modified", "")


def _validator_path(part: Path) -> Path:
    return part.with_name(part.name + ".validator")


def _read_validator(part: Path) -> str:
    try:
        return _validator_path(part).read_text()
    except (OSError, ValueError):  # without it the file is fetched from its start
        return ""
