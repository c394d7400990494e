"""Simultaneous starts on made-up nodes, of which each grants its own processes' locks alone (Lustre's localflock).

They serve tests/faults/test_lock_storms.py and benchmarks/locks.py. Every process is a real one, forked; a queue knows
which of them live, as a batch system does when each is a job of its own.
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import driver.archive.storage
import driver.engine.once as once
from driver.archive import exclusive
from driver.archive.holders import Holder
from driver.archive.lock import WriterLock
from driver.archive.queues import Job, JobState
from driver.archive.records import ArchiveError
from driver.archive.storage import Storage

Counts = Counter[str]

HELD, REFUSED, DOUBLE, LOST, BROKEN = 0, 10, 11, 12, 13
"""Exit codes of the forked processes."""


class Node:
    """One of several nodes that share a folder; its locks hold among its own processes."""

    def __init__(self, folder: Path, number: int) -> None:
        self.name = f"node{number}"
        self._folder = folder / self.name
        self._shadows: dict[int, int] = {}
        self._folder.mkdir(parents=True, exist_ok=True)

    def holder(self) -> Holder:
        """Describe this process as one of that node."""
        return dataclasses.replace(
            Holder.present(), host=self.name, boot=self.name, machine=self.name, scheduler="slurm", job=str(os.getpid())
        )

    def flock(self, file: int | object, operation: int) -> None:
        """Stand in for `fcntl.flock`."""
        descriptor = file if isinstance(file, int) else file.fileno()  # type: ignore[attr-defined]
        if descriptor not in self._shadows:
            name = str(os.fstat(descriptor).st_ino)
            self._shadows[descriptor] = os.open(self._folder / name, os.O_RDWR | os.O_CREAT)
        fcntl_flock(self._shadows[descriptor], operation)

    def close(self, descriptor: int) -> None:
        """Stand in for `os.close`: the lock goes with the descriptor."""
        if descriptor in self._shadows:
            os.close(self._shadows.pop(descriptor))
        os.close(descriptor)


fcntl_flock = fcntl.flock


class NodeStorage(Storage):
    """What a process of a node asks of the operating system; each call may take a while, or be its last."""

    def __init__(self, node: Node, rng: random.Random, deadly: float) -> None:
        self._node, self._rng, self._deadly = node, rng, deadly

    def _pause(self) -> None:
        if self._rng.random() < self._deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        if self._rng.random() < 0.3:
            time.sleep(self._rng.expovariate(1 / 0.002))

    def close(self, descriptor: int) -> None:
        self._node.close(descriptor)

    def lock(self, descriptor: int, *, exclusive: bool) -> bool | None:
        self._pause()
        try:
            self._node.flock(descriptor, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def sync(self, descriptor: int) -> None:
        self._pause()


def _paused(name: str) -> Callable[..., object]:
    def method(self: NodeStorage, *arguments: object, **options: object) -> object:
        self._pause()
        return getattr(Storage, name)(self, *arguments, **options)

    return method


for _name in ("open", "read_all", "write_at", "link", "replace", "remove"):
    setattr(NodeStorage, _name, _paused(_name))


def queue(job: Job) -> JobState:
    """Tell whether a process lives."""
    try:
        state = Path(f"/proc/{job.id}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        state = "X"
    return JobState(state in "ZX", f"{job} is {state}")


def _start_together(count: int, process: Callable[[int], int]) -> list[int]:
    """Fork processes that begin at the same moment; return how each of them ended."""
    ready, go = os.pipe()
    children = []
    for number in range(count):
        child = os.fork()
        if child == 0:
            code = BROKEN
            try:
                os.close(go)
                os.read(ready, 1)  # until the parent closes its end
                code = process(number)
            finally:
                os._exit(code)
        children.append(child)
    os.close(ready)
    os.close(go)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


# -- the writer's lock -------------------------------------------------------------------------------------------------


def lock_storm(folder: Path, starts: int, *, processes: int = 8, nodes: int = 4, seed: int = 0) -> Counts:
    """Start writers of one archive at the same moment, again and again, and count.

    In every other start a lock is there whose holder's job is over; in every third some of the processes are killed at
    random moments. `double`: two held the lock at a time. `stuck`: nobody could take it in the end. `nobody`: no
    process got it although none was killed.
    """
    counts, rng = Counts(), random.Random(seed)
    for start in range(starts):
        place = folder / f"{start}"
        place.mkdir(parents=True)
        deadly = 0.02 if start % 3 == 2 else 0.0
        if start % 2:
            _start_together(1, lambda _, place=place: _leave(place))
            counts["with the lock of a job that is over"] += 1
        seeds = [rng.random() for _ in range(processes)]
        ends = _start_together(
            processes,
            lambda number, place=place, seeds=seeds, deadly=deadly: _hold(
                place, Node(place, number % nodes), random.Random(seeds[number]), deadly
            ),
        )
        counts["simultaneous starts"] += 1
        counts["held"] += ends.count(HELD)
        counts["refused"] += ends.count(REFUSED)
        counts["killed"] += ends.count(-signal.SIGKILL)
        counts["double"] += ends.count(DOUBLE)
        counts["broken"] += ends.count(BROKEN)
        counts["nobody"] += HELD not in ends and -signal.SIGKILL not in ends
        last = _start_together(1, lambda _, place=place: _hold(place, Node(place, 99), random.Random(0), 0.0))
        counts["stuck"] += last != [HELD]
    return counts


def _leave(place: Path) -> int:
    WriterLock(place / "archive.h5", holder=Node(place, 50).holder())
    os._exit(HELD)


def _hold(place: Path, node: Node, rng: random.Random, deadly: float) -> int:
    """Take the lock, see that nobody else has it, and give it up, unless killed on the way."""
    exclusive.SETTLE_SECONDS = 0.02
    storage = NodeStorage(node, rng, deadly)
    time.sleep(rng.random() * 0.004)
    try:
        lock = WriterLock(place / "archive.h5", storage=storage, holder=node.holder(), ask=queue)
    except ArchiveError:
        return REFUSED
    guard = os.open(place / "guard", os.O_RDWR | os.O_CREAT)
    try:
        fcntl_flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)  # a real lock: of all processes, whatever their node
    except BlockingIOError:
        return DOUBLE
    time.sleep(rng.random() * 0.03)
    if rng.random() < 10 * deadly:
        os.kill(os.getpid(), signal.SIGKILL)
    fcntl_flock(guard, fcntl.LOCK_UN)
    lock.release()
    return HELD


# -- results that one process makes for all ----------------------------------------------------------------------------


def cache_storm(folder: Path, starts: int, *, processes: int = 8, nodes: int = 4, seed: int = 0) -> Counts:
    """Let processes that start at the same moment need one result, again and again, and count.

    In every third start some are killed while they make it. `lost`: what a living process had half made was gone.
    `broken`: a process got none, or a wrong one. `twice`: several were made although none was killed.
    """
    counts, rng = Counts(), random.Random(seed)
    for start in range(starts):
        place = folder / f"{start}"
        place.mkdir(parents=True)
        deadly = 0.3 if start % 3 == 2 else 0.0
        seeds = [rng.random() for _ in range(processes)]
        ends = _start_together(
            processes,
            lambda number, place=place, seeds=seeds, deadly=deadly: _make(
                place, Node(place / "nodes", number % nodes), random.Random(seeds[number]), deadly
            ),
        )
        made = len((place / "log").read_text().splitlines()) if (place / "log").exists() else 0
        killed = ends.count(-signal.SIGKILL)
        counts["simultaneous starts"] += 1
        counts["got it"] += ends.count(HELD)
        counts["made"] += made
        counts["killed"] += killed
        counts["lost"] += ends.count(LOST)
        counts["broken"] += ends.count(BROKEN)
        counts["twice"] += made > 1 and not killed
        if killed < processes:
            counts["left over"] += sorted(p.name for p in (place / "cache").iterdir()) != ["made"]
    return counts


def _make(place: Path, node: Node, rng: random.Random, deadly: float) -> int:
    exclusive.SETTLE_SECONDS = 0.02
    once.ASK_AFTER_S, once.HEARTBEAT_S = 0.1, 0.02
    once.job_state = queue
    driver.archive.storage.fcntl.flock = node.flock  # type: ignore[assignment]
    driver.archive.storage.Storage.close = lambda _, descriptor: node.close(descriptor)  # type: ignore[method-assign]

    def make(into: Path) -> None:
        for number in range(4):
            (into / f"{number}").write_text("x")
            time.sleep(rng.random() * 0.01)
            if rng.random() < deadly / 4:
                os.kill(os.getpid(), signal.SIGKILL)
        if len(list(into.iterdir())) != 4:
            raise OSError(errno.ENOENT, "what was half made is gone")
        with (place / "log").open("a") as log:
            log.write("made\n")

    time.sleep(rng.random() * 0.004)
    try:
        made = once.made_once(place / "cache" / "made", make, holder=node.holder(), patience_s=30.0)
    except OSError:
        return LOST
    return HELD if sorted(p.name for p in made.iterdir()) == ["0", "1", "2", "3"] else BROKEN
