"""The readers' file object: the last commit as of its opening, whatever a writer does meanwhile. Knows bytes only."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from driver.archive.journal import journal_path, load_journal
from driver.archive.journal_records import MARK_BYTES, MARK_OFFSET, Contents, JournalError, lay_pages_over
from driver.archive.storage import Storage

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_GONE = (errno.ESTALE, errno.ENOENT)
"""What reading gives where a file has been removed on another machine."""
_PATIENCE, _PAUSE_SECONDS = 4, 0.05
"""How often to look again at a journal that does not fit its file, which may be a matter of caches."""

LOCK_SECONDS = 60.0
"""How long to wait for a writer that is moving pages; a checkpoint takes a fraction of a second."""


class StaleSnapshotError(OSError):
    """The writer has begun to move pages into the file since the snapshot was taken: open again."""


class SnapshotFile(io.RawIOBase):
    """A consistent, read-only view of a file that a `JournaledFile` may be writing.

    The pages of the journal are laid over the file. A shared lock keeps the writer from moving pages into the file,
    while it goes on committing; since locks may not work, or not across machines, each read also makes sure that no
    page has begun to move since the opening.

    Parameters
    ----------
    path : Path
    storage : Storage

    Raises
    ------
    OSError
        From the operating system; `StaleSnapshotError` from `readinto` (and `stale` is set).
    JournalError
        See `load_journal`.
    """

    def __init__(self, path: Path, *, storage: Storage | None = None) -> None:
        super().__init__()
        self.path = path
        self.stale = False
        self._storage = storage or Storage()
        self._position = 0
        self._main = self._journal = -1
        try:
            self._take()
        except BaseException:
            self._close_descriptors()
            raise

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the current position in bytes."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move to a position."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._contents.size}[whence]
        self._position = base + offset
        return self._position

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Fill a buffer; what lies beyond the end is zeroed. Return the number of bytes that exist."""
        view = memoryview(buffer).cast("B")
        count = max(0, min(len(view), self._contents.size - self._position))
        try:
            existing = self._storage.read_at(self._main, view[:count], self._position)
            current = existing == count and self._mark() == self._taken
        except OSError as error:
            if error.errno not in _GONE:
                raise
            current = False
        if not current:
            self.stale = True
            raise StaleSnapshotError(f"{self.path} has been rewritten since it was opened")
        view[count:] = bytes(len(view) - count)
        lay_pages_over(self._contents.pages, view[:count], self._position)
        self._position += count
        return count

    def close(self) -> None:
        """Close, and let the writer move pages again."""
        if not self.closed:
            self._close_descriptors()
            super().close()

    def _take(self) -> None:
        """Open both files and read the journal; again if the writer emptied it meanwhile.

        Between machines a file's size and bytes may be those of some seconds ago, as of the last time that the file was
        opened or locked: so everything is opened anew, and the main file is not read before the journal.
        """
        deadline, patience = time.monotonic() + LOCK_SECONDS, _PATIENCE
        while time.monotonic() < deadline:
            self._close_descriptors()
            try:
                self._main = self._storage.open(self.path)
                self._locked = self._storage.wait_for_lock(self._main, LOCK_SECONDS)
                self._open_journal()
                self._taken = self._mark()
                self._contents = self._read_journal()
                if self._mark() == self._taken:
                    return
            except (JournalError, OSError) as error:
                patience -= 1
                if patience == 0 or (isinstance(error, OSError) and error.errno != errno.ESTALE):
                    raise
                time.sleep(_PAUSE_SECONDS)
        raise StaleSnapshotError(f"{self.path} is rewritten faster than it can be read")

    def _open_journal(self) -> None:
        """Open the journal if there is one."""
        with contextlib.suppress(FileNotFoundError):
            self._journal = self._storage.open(journal_path(self.path))

    def _read_journal(self) -> Contents:
        if self._journal >= 0:
            header, contents = load_journal(self._storage, self._main, self._journal)
            if header is not None:
                return contents
            self._storage.close(self._journal)
            self._journal = -1
            self._taken = self._mark()
        size = self._storage.size(self._main)
        return Contents(size=size, largest_size=size, digest=b"")

    def _mark(self) -> object:
        """What changes before a page moves, and when the journal is emptied or removed.

        Without a lock the journal is opened anew: another machine's file may be cached here until then.
        """
        if self._journal >= 0 and not self._locked:
            descriptor, self._journal = self._journal, -1
            self._storage.close(descriptor)
            self._open_journal()
        if self._journal < 0:
            return self._storage.exists(journal_path(self.path)), self._state()
        start = bytearray(MARK_OFFSET + MARK_BYTES)
        count = self._storage.read_at(self._journal, memoryview(start), 0)
        return bytes(start[:count])

    def _state(self) -> tuple[int, int]:
        if self._locked:
            return self._storage.state(self._main)
        descriptor = self._storage.open(self.path)
        try:
            return self._storage.state(descriptor)
        finally:
            self._storage.close(descriptor)

    def _close_descriptors(self) -> None:
        descriptors, self._main, self._journal = (self._main, self._journal), -1, -1
        for descriptor in descriptors:
            if descriptor >= 0:
                self._storage.close(descriptor)
