"""What the archive asks of the operating system: one class, so that tests can record its calls or make them fail."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from pathlib import Path

_NO_LOCKS = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL}
_NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EMLINK}


class Storage:
    """Files by descriptor and offset. Every method raises `OSError` as the operating system does."""

    def open(
        self, path: Path, *, write: bool = False, create: bool = False, new: bool = False, plain: bool = False
    ) -> int:
        """Open a file, for reading unless `write`; `create` makes it if it is missing.

        With `new` it must not be there, whichever machine asks first; with `plain` no symbolic link is followed, and
        nothing that is no file is waited for.
        """
        flags = (os.O_RDWR if write else os.O_RDONLY) | os.O_CLOEXEC
        flags |= (os.O_CREAT if create else 0) | (os.O_CREAT | os.O_EXCL if new else 0)
        return os.open(path, flags | (os.O_NOFOLLOW | os.O_NONBLOCK if plain else 0), 0o666)

    def close(self, descriptor: int) -> None:
        """Close a descriptor; its locks go with it."""
        os.close(descriptor)

    def size(self, descriptor: int) -> int:
        """Size of the file in bytes."""
        return os.fstat(descriptor).st_size

    def state(self, descriptor: int) -> tuple[int, int]:
        """Size of the file, and time of its last change in nanoseconds."""
        status = os.fstat(descriptor)
        return status.st_size, status.st_mtime_ns

    def read_at(self, descriptor: int, buffer: memoryview, offset: int) -> int:
        """Fill a buffer from an offset on; return the number of bytes read, fewer only at the end of the file."""
        done = 0
        while done < len(buffer):
            count = os.preadv(descriptor, [buffer[done:]], offset + done)
            if count == 0:
                break
            done += count
        return done

    def read_all(self, descriptor: int) -> bytes:
        """Return everything in the file."""
        data = bytearray(self.size(descriptor))
        count = self.read_at(descriptor, memoryview(data), 0)
        return bytes(data[:count])

    def write_at(self, descriptor: int, data: bytes | bytearray | memoryview, offset: int) -> None:
        """Write all of `data` at an offset."""
        view = memoryview(data)
        while view:
            count = os.pwrite(descriptor, view, offset)
            view, offset = view[count:], offset + count

    def resize(self, descriptor: int, size: int) -> None:
        """Cut or extend the file; an extension reads as zeros."""
        os.ftruncate(descriptor, size)

    def sync(self, descriptor: int) -> None:
        """Return when everything written to the file is on stable storage."""
        os.fsync(descriptor)

    def exists(self, path: Path) -> bool:
        """Return whether a file has this name."""
        return path.exists()

    def replace(self, source: Path, target: Path) -> None:
        """Rename a file, replacing the target at once."""
        source.replace(target)

    def link(self, source: Path, target: Path) -> bool:
        """Give a file a second name; return False where the file system has no such names.

        `FileExistsError` if there is anything of that name already: of several machines, one succeeds.
        """
        try:
            os.link(source, target)
        except OSError as error:
            if error.errno in _NO_LINKS:
                return False
            raise
        return True

    def remove(self, path: Path) -> None:
        """Remove a file; none there is no error."""
        path.unlink(missing_ok=True)

    def sync_directory(self, directory: Path) -> None:
        """Return when the names in a directory are on stable storage (where directories can be synced at all)."""
        try:
            descriptor = os.open(directory, os.O_RDONLY)
        except PermissionError:
            return
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
        finally:
            os.close(descriptor)

    def lock(self, descriptor: int, *, exclusive: bool) -> bool | None:
        """Try to lock a whole file for this descriptor, without waiting; a lock that it has is exchanged.

        `flock` is what HDF5 itself uses, so plain h5py readers are kept apart from the writer as well.

        Returns
        -------
        bool or None
            Whether the lock was granted; None if the file system has no locks.
        """
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                return False
            if error.errno in _NO_LOCKS or error.errno == errno.EBADF:
                return None
            raise
        return True

    def wait_for_lock(self, descriptor: int, seconds: float) -> bool:
        """Take a shared lock, waiting for others; return whether there is one: some file systems have none.

        Raises
        ------
        TimeoutError
            If another program keeps it from us for so long.
        """
        deadline = time.monotonic() + seconds
        while (granted := self.lock(descriptor, exclusive=False)) is False:
            if time.monotonic() > deadline:
                raise TimeoutError(errno.ETIMEDOUT, "it has been open for writing in another program")
            time.sleep(0.01)
        return granted is not None


def beside(path: Path, suffix: str) -> Path:
    """Return the name of a file that belongs to another one, the same whatever symbolic link leads to that."""
    real = Path(os.path.realpath(path))
    return real.with_name(real.name + suffix)
