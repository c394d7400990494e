"""The protocol of lock files, step by step: one holder at a time, wherever starts are interrupted or killed."""

from __future__ import annotations

import dataclasses
import errno
import os
import random
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from crash_disk import LocklessStorage, QuickStorage

from driver.archive import exclusive
from driver.archive.exclusive import ExclusiveFile, HeldError
from driver.archive.holders import Holder
from driver.archive.queues import Job, JobState
from driver.archive.storage import Storage


class GrantingStorage(QuickStorage):
    """Lustre's localflock: every node grants every lock."""

    def lock(self, descriptor: int, *, exclusive: bool) -> bool | None:
        return True


class NoLinksStorage(LocklessStorage):
    """A file system without hard links, and without locks."""

    def link(self, source: Path, target: Path) -> bool:
        return False


class SteppingStorage(GrantingStorage):
    """Calls something before the operation of a given number; none after a process has been killed."""

    def __init__(self, base: Storage, number: int, action: Callable[[], None]) -> None:
        self.steps = 0
        self._base, self._number, self._action = base, number, action
        self.dead = False

    def step(self) -> None:
        if self.dead:
            raise Killed
        if self.steps == self._number:
            self.steps += 1
            try:
                self._action()
            except Killed:
                self.dead = True
                raise
        else:
            self.steps += 1


def _stepping(name: str) -> Callable[..., object]:
    def method(self: SteppingStorage, *arguments: object, **options: object) -> object:
        if name != "close":
            self.step()
        return getattr(self._base, name)(*arguments, **options)

    return method


for _name in ("open", "close", "lock", "read_all", "write_at", "sync", "link", "replace", "remove"):
    setattr(SteppingStorage, _name, _stepping(_name))


class Killed(BaseException):
    """SIGKILL: nothing that follows has any effect."""


class World:
    """Processes, each on a node of its own; a queue that knows which of them live."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.dead: set[str] = set()
        self.holding: list[str] = []
        self.most = 0
        self._number = 0

    def ask(self, job: Job) -> JobState:
        return JobState(job.id in self.dead, "")

    def holder(self) -> Holder:
        self._number += 1
        name = f"job{self._number}"
        return dataclasses.replace(Holder.present(), host=name, boot=name, job=name, scheduler="slurm")

    def kill(self, holder: Holder) -> None:
        self.dead.add(holder.job)
        exclusive._held.pop(holder.token, None)
        if holder.job in self.holding:
            self.holding.remove(holder.job)

    def start(self, storage: Storage, *, release: bool = False) -> bool:
        """Start a process; return whether it got the lock."""
        holder = self.holder()
        try:
            lock = ExclusiveFile(self.path, storage=storage, holder=holder, ask=self.ask)
        except HeldError:
            return False
        except Killed:
            self.kill(holder)
            return False
        self.holding.append(holder.job)
        self.most = max(self.most, len(self.holding))
        if release:
            self.holding.remove(holder.job)
            try:
                lock.release()
            except Killed:
                self.kill(holder)
        return True

    def leave(self, storage: Storage) -> None:
        """Leave a lock whose holder is gone."""
        assert self.start(storage)
        self.dead.add(self.holding.pop())
        exclusive._held.clear()


BASES = {"granting": GrantingStorage(), "lockless": LocklessStorage(), "no links": NoLinksStorage()}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exclusive, "SETTLE_SECONDS", 0.0)
    monkeypatch.setattr(exclusive, "_held", {})


def interruptions(folder: Path, base: Storage, *, stale: bool, action: str) -> int:
    """Interrupt a start at each of its steps by another one, that by a third one; return how many ways there are."""
    ways = outer = 0
    while True:
        inner, more = 0, False
        while True:
            world = World(folder / f"{outer}-{inner}.lock")
            if stale:
                world.leave(base)
            third = SteppingStorage(base, 10**9, lambda: None)

            def innermost(world: World = world, third: SteppingStorage = third) -> None:
                if action == "kill":
                    raise Killed
                world.start(third, release=action == "release")

            second = SteppingStorage(base, inner, innermost)

            def between(world: World = world, second: SteppingStorage = second) -> None:
                world.start(second, release=action == "release")

            first = SteppingStorage(base, outer, between)
            world.start(first)
            assert world.most == 1, f"{world.most} at a time ({outer}, {inner})"
            for job in list(world.holding):
                world.holding.remove(job)
                world.dead.add(job)
            exclusive._held.clear()
            assert world.start(base), f"nobody can take it any more ({outer}, {inner})"
            ways += 1
            more = first.steps > outer
            inner += 1
            if second.steps < inner or not more:
                break
        if not more:
            return ways
        outer += 1


@pytest.mark.parametrize("action", ["hold", "release", "kill"])
@pytest.mark.parametrize("stale", [False, True])
@pytest.mark.parametrize("base", ["granting", "lockless"])
def test_one_holder_wherever_starts_are_interrupted(tmp_path: Path, base: str, stale: bool, action: str) -> None:
    """Three simultaneous starts on three nodes, or two of which one is killed, at every combination of steps."""
    assert interruptions(tmp_path, BASES[base], stale=stale, action=action) > (200 if stale else 30)


class _Turns:
    """Threads that go on one step at a time, in an order drawn at random."""

    def __init__(self, rng: random.Random) -> None:
        self._rng, self._baton, self._waiting = rng, threading.Condition(), dict[int, bool]()

    def run(self, functions: Sequence[Callable[[Callable[[], None]], None]]) -> None:
        threads = [threading.Thread(target=self._one, args=(i, f)) for i, f in enumerate(functions)]
        self._waiting = dict.fromkeys(range(len(functions)), False)
        for thread in threads:
            thread.start()
        with self._baton:
            while self._waiting:
                self._baton.wait_for(lambda: all(self._waiting.values()))
                if self._waiting:
                    self._waiting[self._rng.choice(sorted(self._waiting))] = False
                    self._baton.notify_all()
        for thread in threads:
            thread.join()

    def _one(self, number: int, function: Callable[[Callable[[], None]], None]) -> None:
        def step() -> None:
            with self._baton:
                self._waiting[number] = True
                self._baton.notify_all()
                self._baton.wait_for(lambda: not self._waiting[number])

        try:
            step()
            function(step)
        finally:
            with self._baton:
                del self._waiting[number]
                self._baton.notify_all()


class TurnStorage(SteppingStorage):
    """Waits for its turn before each operation, and may be killed there."""

    def __init__(self, base: Storage, turn: Callable[[], None], killed_at: int) -> None:
        super().__init__(base, -1, lambda: None)
        self._turn, self._killed_at = turn, killed_at

    def step(self) -> None:
        if not self.dead:
            self._turn()
        self.steps += 1
        if self.dead or self.steps == self._killed_at:
            self.dead = True
            raise Killed


@pytest.mark.parametrize("base", ["granting", "lockless"])
@pytest.mark.parametrize("stale", [False, True])
def test_one_holder_in_whatever_order_the_steps_are_done(tmp_path: Path, base: str, stale: bool) -> None:
    """Four simultaneous starts on four nodes, some killed on the way, some giving the lock up."""
    held = 0
    for seed in range(150):
        rng = random.Random(seed)
        world = World(tmp_path / f"{seed}.lock")
        if stale:
            world.leave(BASES[base])

        def process(step: Callable[[], None], world: World = world, rng: random.Random = rng) -> None:
            killed_at = rng.randrange(40) if rng.random() < 0.3 else -1
            world.start(TurnStorage(BASES[base], step, killed_at), release=rng.random() < 0.3)

        _Turns(rng).run([process] * 4)
        assert world.most <= 1, f"{world.most} at a time (seed {seed})"
        held += world.most
        for job in list(world.holding):
            world.holding.remove(job)
            world.dead.add(job)
        exclusive._held.clear()
        assert world.start(BASES[base]), f"nobody can take it any more (seed {seed})"
    assert held > 120


@pytest.mark.parametrize("stale", [False, True])
@pytest.mark.parametrize("base", list(BASES))
def test_killed_at_any_moment_it_is_taken_over(tmp_path: Path, base: str, stale: bool) -> None:
    """By exactly one, at once; what the dead one has left beside the lock is removed."""

    def kill() -> None:
        raise Killed

    for number in range(100):
        folder = tmp_path / f"{number}"
        folder.mkdir()
        world = World(folder / "archive.h5.lock")
        if stale:
            world.leave(BASES[base])
        storage = SteppingStorage(BASES[base], number, kill)
        world.start(storage)
        if storage.steps <= number:
            break
        world.leave(BASES[base])
        assert world.start(BASES[base])
        assert not world.start(BASES[base])
        left = [path for path in folder.iterdir() if path.name != "archive.h5.lock"]
        # What is empty or torn names nobody, and is removed after a day.
        assert all(b"token" not in path.read_bytes() for path in left)
    assert 5 < number < 99


def test_a_start_that_is_refused_leaves_the_lock_alone(tmp_path: Path) -> None:
    lock = ExclusiveFile(tmp_path / "a.lock")
    before = lock.path.stat()
    for _ in range(3):
        with pytest.raises(HeldError):
            ExclusiveFile(lock.path)
    assert lock.path.stat() == before
    assert list(tmp_path.iterdir()) == [lock.path]
    lock.release()


def test_an_error_of_the_file_system_leaves_no_lock(tmp_path: Path) -> None:
    """Wherever it happens, this process or another can take the lock afterwards."""
    for number in range(100):
        world = World(tmp_path / f"{number}.lock")

        def fail() -> None:
            raise OSError(errno.EIO, "injected")

        storage = SteppingStorage(QuickStorage(), number, fail)
        try:
            ExclusiveFile(world.path, storage=storage).release()
        except OSError as error:
            assert error.errno == errno.EIO
        if storage.steps <= number:
            break
        ExclusiveFile(world.path).release()
    assert 5 < number < 99


def test_nobody_waits_without_contention(tmp_path: Path) -> None:
    """Neither for a fresh lock nor for that of a process of this machine that was killed."""
    exclusive.SETTLE_SECONDS = 60.0
    began = time.monotonic()
    for _ in range(20):
        ExclusiveFile(tmp_path / "a.lock").release()
    code = f"""
import os
from pathlib import Path
from driver.archive.exclusive import ExclusiveFile
lock = ExclusiveFile(Path({str(tmp_path / "a.lock")!r}))
os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3])
    assert (tmp_path / "a.lock").exists()
    ExclusiveFile(tmp_path / "a.lock").release()
    assert time.monotonic() - began < 30.0


def test_after_a_process_of_another_machine_it_waits_a_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(tmp_path / "a.lock")
    world.leave(GrantingStorage())
    waited: list[float] = []
    monkeypatch.setattr(exclusive, "SETTLE_SECONDS", 0.7)
    monkeypatch.setattr(exclusive.time, "sleep", waited.append)
    assert world.start(GrantingStorage())
    assert waited == [0.7]


def test_a_forked_child_does_not_hold_what_its_parent_held(tmp_path: Path) -> None:
    """It neither gives the parent's lock up, nor believes that a dead parent's lock is its own."""
    lock = ExclusiveFile(tmp_path / "a.lock")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            lock.release()
            code = 0 if lock.path.exists() and os.getpid() not in exclusive._held.values() else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with pytest.raises(HeldError):
        ExclusiveFile(lock.path)
    lock.release()
    assert not lock.path.exists()


@pytest.mark.parametrize("kind", ["link", "dangling", "folder", "pipe"])
def test_what_is_no_file_is_refused_and_left_alone(tmp_path: Path, kind: str) -> None:
    path, other = tmp_path / "a.lock", tmp_path / "precious"
    if kind == "link":
        other.write_text("precious")
    if kind in ("link", "dangling"):
        path.symlink_to(other)
    elif kind == "folder":
        path.mkdir()
    else:
        os.mkfifo(path)
    with pytest.raises(OSError, match="no regular file"):
        ExclusiveFile(path)
    assert stat.S_IFMT(path.lstat().st_mode) != stat.S_IFREG
    assert other.exists() == (kind == "link")
    if kind == "link":
        assert other.read_text() == "precious"


def test_stray_files_of_other_locks_are_left_alone(tmp_path: Path) -> None:
    """Only what a killed start of this lock has left goes; a lock of a file whose name begins alike is none of that."""
    dead = dataclasses.replace(Holder.present(), pid=2**22 + 1).to_bytes()
    (tmp_path / "archive.h5.lock").write_bytes(dead)
    stray = tmp_path / "archive.h5.0123456789abcdef.new.lock"
    for path in (stray, tmp_path / "archive.h5.part.lock", tmp_path / "archive.h5.0123456789abcdef.lock"):
        path.write_bytes(dead)
    ExclusiveFile(tmp_path / "archive.h5.lock")
    assert not stray.exists()
    assert (tmp_path / "archive.h5.part.lock").exists()
    assert (tmp_path / "archive.h5.0123456789abcdef.lock").exists()
