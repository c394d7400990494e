"""A file with transactions, for HDF5 to write through: a journal stands beside it, as in SQLite. Knows bytes only.

Bytes beyond the size as of the last commit go straight to the file, since nothing committed refers to them; bytes
below it are kept in memory, as pages. A commit syncs the file, appends the changed pages, the new size and a checksum
to the journal, and syncs that. Later the pages move into the file ("checkpoint"), while no reader holds its lock.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from driver.archive.journal_records import (
    HEAD_BYTES,
    MARK_OFFSET,
    PAGE_BYTES,
    RECORDS_OFFSET,
    Contents,
    Header,
    JournalError,
    decode_header,
    digest_head,
    encode_record,
    is_moving,
    lay_pages_over,
    moving_mark,
    new_header,
    read_contents,
)
from driver.archive.storage import Storage, beside

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

CHECKPOINT_BYTES = 16 * 2**20
READ_PAUSES_S = (0.1, 0.3, 1.0, 3.0, 10.0, 15.0)  # before reading again, as when a file server restarts
_PASSING = (errno.EIO, errno.ESTALE, errno.ETIMEDOUT)
OPEN_SECONDS = 10.0
"""How long to wait for another program that writes the file, which nobody should."""


def journal_path(path: Path) -> Path:
    """Where the journal of a file stands: beside the file itself, by whichever symbolic link that is reached."""
    return beside(path, ".journal")


def load_journal(storage: Storage, main: int, journal: int) -> tuple[Header | None, Contents]:
    """Read an open journal and check that it belongs to the main file.

    Returns
    -------
    header : Header or None
        None if the journal says nothing: the main file stands as it is.
    contents : Contents
        What readers and writers have to lay over the main file.

    Raises
    ------
    JournalError
        If commits in it cannot be read, or it belongs to another file.
    """
    data = storage.read_all(journal)
    size = storage.size(main)  # after the journal: a writer may be extending both
    nothing = Contents(size=size, largest_size=size, digest=b"")
    header = decode_header(data)
    if header is None:
        if len(data) > RECORDS_OFFSET:
            raise JournalError("the journal does not start with a valid header")
        return None, nothing
    contents = read_contents(data, header)
    moving = is_moving(data, header)
    if contents.records == 0 and moving:
        if len(data) > RECORDS_OFFSET:
            raise JournalError(f"the journal is damaged at byte {RECORDS_OFFSET}")
        return None, nothing  # the pages have moved; only the new header is missing
    head = bytearray(HEAD_BYTES)
    count = storage.read_at(main, memoryview(head), 0)
    identified = min(header.base_size, contents.size) >= HEAD_BYTES
    expected = contents.size if moving else contents.largest_size
    if size < expected or (identified and digest_head(bytes(head[:count])) not in contents.heads):
        raise JournalError("the journal belongs to another file, or to another version of this one")
    return header, contents


class JournaledFile(io.RawIOBase):
    """The writer's file object: what it reads is what it wrote, and only `commit` makes that last.

    Parameters
    ----------
    path : Path
        An existing file. What a journal beside it holds is taken over.
    storage : Storage
        The operating system, or a stand-in.
    checkpoint_bytes : int
        Size of the journal from which on pages move into the file after a commit.

    Raises
    ------
    OSError
        From the operating system.
    JournalError
        See `load_journal`.

    Notes
    -----
    `write` and `truncate` never raise: HDF5 crashes when it goes on after an error while it was writing. After an
    `OSError` `failure` holds it, everything that is written is dropped, and `commit` raises. The
    next to open the file finds the last commit.
    """

    def __init__(self, path: Path, *, storage: Storage | None = None, checkpoint_bytes: int = CHECKPOINT_BYTES) -> None:
        super().__init__()
        self.path = path
        self.failure: OSError | None = None
        self.give_up: Callable[[OSError], None] | None = None
        """What to do rather than raise when reading fails for good: an error would crash HDF5 while it writes."""
        self._storage = storage or Storage()
        self._checkpoint_bytes = checkpoint_bytes
        self._position = 0
        self._dropping = False
        self._dirty: dict[int, bytearray] = {}
        self._unsynced = False
        self._main = self._storage.open(path, write=True)
        self._journal = -1
        try:
            self._storage.wait_for_lock(self._main, OPEN_SECONDS)  # keeps out programs that would write it
            self._journal = self._storage.open(journal_path(path), write=True, create=True)
            self._take_over()
        except BaseException:
            self._close_descriptors()
            raise

    # -- the file as HDF5 sees it ------------------------------------------------------------------------------------

    def readable(self) -> bool:
        """Return True."""
        return True

    def writable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the current position in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a position; one beyond the end is allowed."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        self._position = base + offset
        return self._position

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Fill a buffer; what lies beyond the end is zeroed. Return the number of bytes that exist."""
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self._size - self._position))
        self._read_patiently(view[:count])
        view[count:] = bytes(len(view) - count)
        self._position += count
        return count

    def write(self, data: ReadableBuffer) -> int:
        """Write at the current position; not durable before `commit`, which also raises what goes wrong here."""
        view = memoryview(data).cast("B")
        start, self._position = self._position, self._position + len(view)
        if not self._dropping and len(view):
            with contextlib.suppress(OSError):
                self._guarded(lambda: self._write(view, start))
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        """Cut or extend the file; an extension reads as zeros. `commit` raises what goes wrong here."""
        size = self._position if size is None else size
        if not self._dropping:
            with contextlib.suppress(OSError):
                self._guarded(lambda: self._resize(size))
        return size

    def flush(self) -> None:
        """Do nothing: only `commit` makes changes durable."""

    def close(self) -> None:
        """Drop what is not committed, empty and remove the journal if no reader is in the way, and close."""
        if self.closed:
            return
        try:
            if self.failure is None and self._main >= 0:
                self.rollback()
                self._checkpoint(last=True)
        finally:
            self._dropping = True  # HDF5 may write once more when it is garbage-collected
            self._close_descriptors()
            super().close()

    # -- transactions ------------------------------------------------------------------------------------------------

    @property
    def journal_bytes(self) -> int:
        """Size of the journal."""
        return self._contents.end

    def commit(self) -> None:
        """Make everything written so far durable, at once: after a crash all of it is there, or nothing.

        Raises
        ------
        OSError
            If the operating system fails now, or failed before.
        """
        if self.failure is not None:
            raise self.failure
        self._guarded(self._commit)
        if self._contents.end > self._checkpoint_bytes:
            self.checkpoint()

    def rollback(self) -> None:
        """Return to the last commit."""
        self._dirty.clear()
        self._size = self._contents.size
        if self.failure is None:
            self._guarded(self._cut)

    def drop_writes(self, drop: bool) -> None:
        """While `drop`, writes vanish: HDF5 can be closed without a trace before a rollback."""
        self._dropping = drop or self.failure is not None

    def checkpoint(self) -> bool:
        """Move the committed pages into the file and empty the journal.

        Returns
        -------
        bool
            False if a reader's lock forbade it; nothing has happened then.
        """
        if self.failure is not None:
            raise self.failure
        return self._checkpoint()

    # -- inside ------------------------------------------------------------------------------------------------------

    def _take_over(self) -> None:
        """Take what the journal holds as the present state, and cut off what nobody committed."""
        header, self._contents = load_journal(self._storage, self._main, self._journal)
        self._size = self._contents.size
        if header is None:
            self._restart_journal()
            self._storage.sync_directory(self.path.parent)
            return
        self._header = header
        self._cut()
        self._storage.resize(self._journal, self._contents.end)
        self._storage.sync(self._journal)
        if self._contents.records:
            self.checkpoint()

    def _guarded(self, action: Callable[[], None]) -> None:
        """Run an action on the files; if the operating system fails, take no further part."""
        try:
            action()
        except OSError as error:
            self.failure = error
            self._dropping = True
            raise

    def _read_patiently(self, view: memoryview) -> None:
        """Read at the current position; errors that may pass are given half a minute to do so."""
        pauses_s = iter(READ_PAUSES_S)
        while True:
            try:
                return self._read(view, self._position)
            except OSError as error:
                pause_s = next(pauses_s, None) if error.errno in _PASSING else None
                if pause_s is None:
                    self.failure, self._dropping = error, True
                    if self.give_up is None:
                        raise
                    return self.give_up(error)
            time.sleep(pause_s)

    def _read(self, view: memoryview, start: int) -> None:
        count = self._storage.read_at(self._main, view, start)
        view[count:] = bytes(len(view) - count)
        lay_pages_over(self._contents.pages, view, start)
        lay_pages_over(self._dirty, view, start)

    def _write(self, view: memoryview, start: int) -> None:
        if start > self._size:
            self._resize(start)
        floor = self._contents.largest_size
        below = max(0, min(len(view), floor - start))
        if below:
            self._write_pages(view[:below], start)
        if below < len(view):
            self._unsynced = True
            self._storage.write_at(self._main, view[below:], start + below)
        self._size = max(self._size, start + len(view))

    def _write_pages(self, view: memoryview, start: int) -> None:
        """Change bytes that the last commit refers to: in memory, and only the pages that really change."""
        step, stop = PAGE_BYTES, start + len(view)
        first = start - start % step
        old = bytearray(min(-(-stop // step) * step, self._contents.largest_size) - first)
        self._read(memoryview(old), first)
        new = bytearray(old)
        new[start - first : stop - first] = view
        for begin in range(0, len(new), step):
            page = new[begin : begin + step]
            if page != old[begin : begin + step]:
                self._dirty[first + begin] = page

    def _resize(self, size: int) -> None:
        floor = self._contents.largest_size
        if size > self._size:
            zeros_end = min(size, floor)
            if self._size < zeros_end:  # what was there before a cut
                self._write_pages(memoryview(bytes(zeros_end - self._size)), self._size)
        physical = self._storage.size(self._main)
        if max(size, floor) != physical:
            self._unsynced = True
            self._storage.resize(self._main, max(size, floor))
        self._size = size

    def _cut(self) -> None:
        """Cut off what was written beyond anything committed since the journal was last emptied."""
        if self._storage.size(self._main) != self._contents.largest_size:
            self._storage.resize(self._main, self._contents.largest_size)

    def _commit(self) -> None:
        contents = self._contents
        pages = {offset: bytes(self._dirty[offset]) for offset in sorted(self._dirty) if offset < self._size}
        if not pages and not self._unsynced and self._size == contents.size:
            return
        if self._unsynced:
            self._storage.sync(self._main)
            self._unsynced = False
        record, digest = encode_record(self._header, contents, self._size, pages)
        self._storage.write_at(self._journal, record, contents.end)
        self._storage.sync(self._journal)
        self._dirty.clear()
        contents.pages.update(pages)
        contents.size = self._size
        contents.largest_size = max(contents.largest_size, self._size)
        contents.digest = digest
        contents.records += 1
        contents.end += len(record)

    def _checkpoint(self, *, last: bool = False) -> bool:
        granted = self._storage.lock(self._main, exclusive=True) is not False
        try:
            if granted and self._contents.records:
                self._guarded(self._move_pages)
            if granted and last:
                self._guarded(self._remove_journal)
        finally:
            self._storage.lock(self._main, exclusive=False)
        return granted

    def _move_pages(self) -> None:
        contents, storage, main, journal = self._contents, self._storage, self._main, self._journal
        storage.write_at(journal, moving_mark(self._header, contents.records), MARK_OFFSET)
        storage.sync(journal)  # readers whose locks do not work look here
        for offset in sorted(contents.pages):
            if offset < contents.size:
                storage.write_at(main, memoryview(contents.pages[offset])[: contents.size - offset], offset)
        storage.resize(main, contents.size)
        storage.sync(main)
        storage.resize(journal, RECORDS_OFFSET)
        storage.sync(journal)
        self._restart_journal()

    def _restart_journal(self) -> None:
        """Begin an empty journal over the main file as it is."""
        size = self._contents.size
        head = bytearray(min(HEAD_BYTES, size))
        self._storage.read_at(self._main, memoryview(head), 0)
        self._header = new_header(size, bytes(head))
        self._storage.write_at(self._journal, self._header.encode(), 0)
        self._storage.resize(self._journal, RECORDS_OFFSET)
        self._storage.sync(self._journal)
        self._contents = Contents(size=size, largest_size=size, digest=self._header.salt)

    def _remove_journal(self) -> None:
        self._storage.resize(self._journal, 0)  # so that a reader that still has it open takes notice
        self._storage.remove(journal_path(self.path))
        self._storage.sync_directory(self.path.parent)

    def _close_descriptors(self) -> None:
        descriptors, self._main, self._journal = (self._main, self._journal), -1, -1
        for descriptor in (descriptor for descriptor in descriptors if descriptor >= 0):
            self._storage.close(descriptor)
