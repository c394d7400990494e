"""Stand-ins for the operating system: one that records what a writer asks of it, and what a dying machine leaves."""

from __future__ import annotations

import errno
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from driver.archive.storage import Storage

SECTOR = 512


@dataclass(frozen=True)
class Operation:
    """One call: `kind` is create, write, resize, sync, replace, remove or sync_directory."""

    kind: str
    name: str
    offset: int = 0
    data: bytes = b""
    target: str = ""


class RecordingStorage(Storage):
    """The real thing, without waiting for the disk, that remembers every call that changes something."""

    def __init__(self) -> None:
        self.operations: list[Operation] = []
        self._names: dict[int, str] = {}

    def open(self, path: Path, **how: bool) -> int:
        missing = not path.exists()
        descriptor = super().open(path, **how)
        if missing:
            self._record("create", path.name)
        self._names[descriptor] = path.name
        return descriptor

    def write_at(self, descriptor: int, data: bytes | bytearray | memoryview, offset: int) -> None:
        self._record("write", self._names[descriptor], offset, bytes(data))
        super().write_at(descriptor, data, offset)

    def resize(self, descriptor: int, size: int) -> None:
        self._record("resize", self._names[descriptor], size)
        super().resize(descriptor, size)

    def sync(self, descriptor: int) -> None:
        self._record("sync", self._names[descriptor])

    def replace(self, source: Path, target: Path) -> None:
        self._record("replace", source.name, target=target.name)
        super().replace(source, target)

    def remove(self, path: Path) -> None:
        if path.exists():
            self._record("remove", path.name)
        super().remove(path)

    def sync_directory(self, directory: Path) -> None:
        self._record("sync_directory", "")

    def _record(self, kind: str, name: str, offset: int = 0, data: bytes = b"", target: str = "") -> None:
        if not name.endswith(".lock"):
            self.operations.append(Operation(kind, name, offset, data, target))


class QuickStorage(Storage):
    """The real thing, without waiting for the disk."""

    def sync(self, descriptor: int) -> None:
        pass

    def sync_directory(self, directory: Path) -> None:
        pass


class LocklessStorage(QuickStorage):
    """A file system without locks."""

    def lock(self, descriptor: int, *, exclusive: bool) -> bool | None:
        return None


class FailingStorage(QuickStorage):
    """A disk that fails from some moment on.

    `budget` counts the bytes that may still be written; `error` is what then happens, after half of the data.
    """

    def __init__(self, budget: int, error: int = errno.ENOSPC, only: str = "") -> None:
        self.budget = budget
        self.error = error
        self.only = only
        self.failures = 0
        self._names: dict[int, str] = {}

    def open(self, path: Path, **how: bool) -> int:
        descriptor = super().open(path, **how)
        self._names[descriptor] = path.name
        return descriptor

    def write_at(self, descriptor: int, data: bytes | bytearray | memoryview, offset: int) -> None:
        if not self._names[descriptor].endswith(self.only):
            super().write_at(descriptor, data, offset)
            return
        self.budget -= len(data)
        if self.budget < 0:
            self.failures += 1
            super().write_at(descriptor, bytes(data)[: len(data) // 2], offset)
            raise OSError(self.error, "injected")
        super().write_at(descriptor, data, offset)


@dataclass
class Disk:
    """Files and names as they are after a sequence of operations."""

    names: dict[str, int] = field(default_factory=dict)
    files: dict[int, bytearray] = field(default_factory=dict)

    def apply(self, operation: Operation, file: int | None = None) -> None:
        """Carry out an operation, on the file of its name unless another is given."""
        kind = operation.kind
        if kind == "create":
            file = len(self.files) if file is None else file
            self.names[operation.name] = file
            self.files.setdefault(file, bytearray())
        elif kind == "replace":
            if operation.name in self.names:
                self.names[operation.target] = self.names.pop(operation.name)
        elif kind == "remove":
            self.names.pop(operation.name, None)
        elif kind in ("write", "resize"):
            self._change(self.files[self.names[operation.name] if file is None else file], operation)

    def save(self, folder: Path) -> None:
        """Write the named files into a folder."""
        for name, file in self.names.items():
            (folder / name).write_bytes(self.files[file])

    def copy(self) -> Disk:
        """Return an independent copy."""
        return Disk(dict(self.names), {number: bytearray(data) for number, data in self.files.items()})

    @staticmethod
    def _change(data: bytearray, operation: Operation) -> None:
        if operation.kind == "resize":
            del data[operation.offset :]
            data.extend(bytes(operation.offset - len(data)))
            return
        end = operation.offset + len(operation.data)
        data.extend(bytes(max(0, end - len(data))))
        data[operation.offset : end] = operation.data


def torn(operation: Operation, fraction: float) -> Operation:
    """Return the part of a write that was done when the writer was killed."""
    return Operation(
        operation.kind, operation.name, operation.offset, operation.data[: int(len(operation.data) * fraction)]
    )


def killed_after(operations: Sequence[Operation], count: int, fraction: float = 0.0) -> Disk:
    """Return the disk after `count` operations and a part of the next one, if that is a write."""
    disk = Disk()
    for operation in operations[:count]:
        disk.apply(operation)
    if fraction and count < len(operations) and operations[count].kind == "write":
        disk.apply(torn(operations[count], fraction))
    return disk


def power_lost_after(operations: Sequence[Operation], count: int, rng: random.Random) -> Disk:
    """Return what a disk may hold if the power fails after `count` operations.

    Everything synced is there. Of the rest, any subset in any order: writes by the sector, names in their order.
    """
    now, durable = Disk(), Disk()
    pending: dict[int, list[Operation]] = {}
    pending_names: list[tuple[Operation, int]] = []
    for operation in operations[:count]:
        kind = operation.kind
        if kind in ("create", "replace", "remove"):
            now.apply(operation)
            pending_names.append((operation, now.names.get(operation.name, -1)))
        elif kind == "sync_directory":
            for named, file in pending_names:
                durable.apply(named, file if named.kind == "create" else None)
            pending_names = []
        elif kind == "sync":
            file = now.names[operation.name]
            durable.files[file] = bytearray(now.files[file])
            pending[file] = []
        else:
            file = now.names[operation.name]
            now.apply(operation)
            pending.setdefault(file, []).append(operation)
    for named, file in pending_names:
        if rng.random() < 0.5:
            durable.apply(named, file if named.kind == "create" else None)
    for file, unsynced in pending.items():
        durable.files.setdefault(file, bytearray())
        _apply_some(durable, file, unsynced, rng)
    return durable


def _apply_some(disk: Disk, file: int, operations: Sequence[Operation], rng: random.Random) -> None:
    parts = [part for operation in operations for part in _sectors(operation)]
    kept: Callable[[Operation], bool] = rng.choice(
        [lambda _: False, lambda _: True, lambda _: rng.random() < 0.5, lambda _: rng.random() < 0.9]
    )
    chosen = [part for part in parts if kept(part)]
    if rng.random() < 0.5:
        rng.shuffle(chosen)
    for part in chosen:
        disk.apply(part, file)


def _sectors(operation: Operation) -> list[Operation]:
    if operation.kind != "write":
        return [operation]
    parts, start, end = [], operation.offset, operation.offset + len(operation.data)
    while start < end:
        stop = min(end, (start // SECTOR + 1) * SECTOR)
        data = operation.data[start - operation.offset : stop - operation.offset]
        parts.append(Operation("write", operation.name, start, data))
        start = stop
    return parts


class NetworkStorage(QuickStorage):
    """A file system on another machine, as seen by one of its clients: slow, and with caches.

    Sizes, times, names and bytes may be those of `memory_s` seconds ago, as of when the file was last opened or locked;
    reading brings neighbouring bytes into the cache. Now and then a read fails with one of `errors`.

    Parameters
    ----------
    locks : bool
        Whether locks work between machines.
    seed : int
    rate : float
        Fraction of reads that fail.
    """

    BLOCK = 32 * 1024

    def __init__(
        self,
        *,
        locks: bool = True,
        seed: int = 0,
        rate: float = 0.0,
        errors: Sequence[int] = (errno.ESTALE,),
        memory_s: float = 3.0,
    ) -> None:
        self.failures = 0
        self._locks, self._rate, self._errors, self._memory_s = locks, rate, errors, memory_s
        self._rng = random.Random(seed)
        self._blocks: dict[tuple[int, int], tuple[float, bytes]] = {}
        self._states: dict[int, tuple[float, tuple[int, int]]] = {}
        self._names: dict[Path, tuple[float, bool]] = {}

    def open(self, path: Path, **how: bool) -> int:
        self._wait()
        descriptor = super().open(path, **how)
        self._forget(descriptor)
        self._states[descriptor] = time.monotonic(), super().state(descriptor)
        return descriptor

    def state(self, descriptor: int) -> tuple[int, int]:
        taken, state = self._states[descriptor]
        if time.monotonic() - taken > self._memory_s:
            self._wait()
            state = super().state(descriptor)
            self._states[descriptor] = time.monotonic(), state
        return state

    def size(self, descriptor: int) -> int:
        return self.state(descriptor)[0]

    def exists(self, path: Path) -> bool:
        taken, there = self._names.get(path, (-1e9, False))
        if time.monotonic() - taken > self._memory_s:
            there = super().exists(path)
            self._names[path] = time.monotonic(), there
        return there

    def read_at(self, descriptor: int, buffer: memoryview, offset: int) -> int:
        if self._rng.random() < self._rate:
            self.failures += 1
            number = self._rng.choice(self._errors)
            raise OSError(number, os.strerror(number))
        size, done = self.size(descriptor), 0
        while done < len(buffer) and offset + done < size:
            block = (offset + done) // self.BLOCK
            start = offset + done - block * self.BLOCK
            data = self._block(descriptor, block)[start : min(self.BLOCK, size - block * self.BLOCK)]
            data = data[: len(buffer) - done]
            if not data:
                break
            buffer[done : done + len(data)] = data
            done += len(data)
        return done

    def lock(self, descriptor: int, *, exclusive: bool) -> bool | None:
        self._wait()
        granted = super().lock(descriptor, exclusive=exclusive) if self._locks else None
        if granted:
            self._forget(descriptor)
            self._states[descriptor] = time.monotonic(), super().state(descriptor)
        return granted

    def _block(self, descriptor: int, block: int) -> bytes:
        taken, data = self._blocks.get((descriptor, block), (-1e9, b""))
        if time.monotonic() - taken > self._memory_s:
            self._wait()
            data = os.pread(descriptor, self.BLOCK, block * self.BLOCK)
            self._blocks[descriptor, block] = time.monotonic(), data
        return data

    def _forget(self, descriptor: int) -> None:
        for key in [key for key in self._blocks if key[0] == descriptor]:
            del self._blocks[key]

    def _wait(self) -> None:
        time.sleep(self._rng.random() * 1e-3)
