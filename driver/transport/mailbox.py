"""The thread of a rank that does all of its MPI: sends, receives, and gives and awaits signs of life.

The main thread computes, or writes, and never waits for MPI; so a rank answers, and is heard, while it compiles a
model or waits for a disk. No call in here blocks: a message that does not come through, because its sender has been
stopped half-way or its receiver takes nothing, holds nobody up.
"""

from __future__ import annotations

import contextlib
import pickle
import struct
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from driver.errors import InterruptedRunError
from driver.guard import Guard
from driver.messages import Beat, Gone

GUARD_MARGIN_S = 4.0
"""The guard waits longer than the peers, who know better what to do about a lost rank."""

START_S = 5.0
"""Besides a new patience, for the peers to learn of it."""

_MESSAGE, _BEAT = 1, 2
_BEAT_BYTES = 8
_ALIGNMENT = 16
"""Arrays in a message begin at multiples of so many bytes, as numpy and torch like them."""
_BURST = 256
"""Messages taken in one turn, before anything is sent."""
_PAUSE_SHORTEST_S, _PAUSE_LONGEST_S = 5e-5, 0.02
_LONGEST_TURN_S = 1.0
"""What counts at most between two turns: a rank that was itself stopped must not blame the others for the time."""


@dataclass(frozen=True)
class _Arriving:
    request: Any
    tag: int
    buffer: bytearray


@dataclass(frozen=True)
class _Leaving:
    receiver: int
    request: Any
    buffer: bytearray


class Mailbox:
    """Messages of one rank; `start` begins, and from then on the other threads of this process leave MPI alone.

    Parameters
    ----------
    comm : mpi4py communicator
    peers : iterable of int
        Ranks that this one hears from and watches: all workers, or the master alone.
    patience_s : float
        A peer that has given no sign of life for so long is lost.
    guard : Guard
        Gets a sign of life as long as this thread runs.
    fault_tolerant : bool
        MPI reports dead ranks, and goes on.

    Attributes
    ----------
    taken : callable
        (sender, message) -> whether the message has been dealt with, in this thread, and is not for the main thread.
    lost : callable
        (peer, reason) -> the same of a peer that is lost.
    turned : callable
        Called now and then.
    """

    def __init__(self, comm: Any, peers: Any, patience_s: float, guard: Guard, *, fault_tolerant: bool) -> None:
        self._comm = comm
        self._peers: dict[int, float] = dict.fromkeys(peers, 0.0)
        self._sole_peer = next(iter(self._peers)) if len(self._peers) == 1 else None
        self.patience_s = patience_s
        self._guard = guard
        self._fault_tolerant = fault_tolerant
        self.taken: Callable[[int, Any], bool] = lambda sender, message: False
        self.lost: Callable[[int, str], bool] = lambda peer, reason: False
        self.turned: Callable[[float], None] = lambda now_s: None
        self._changed = threading.Condition()
        self._inbox: deque[tuple[int, Any]] = deque()
        self._outbox: deque[tuple[int, bytearray]] = deque()
        self._wake = threading.Event()
        self._arriving: dict[tuple[int, int], deque[_Arriving]] = defaultdict(deque)
        self._under_way: list[_Leaving] = []
        self._failure: BaseException | None = None
        self._ending = False
        self._now_s = 0.0
        self._looked_s = time.monotonic()
        self._next_beat_s = self._next_look_s = 0.0
        self._progress = 0
        self._progress_of: dict[int, int] = {}
        self._thread = threading.Thread(target=self._run, name="mailbox", daemon=True)

    # -- the main thread's side ---------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread, if this is another one; MPI is the caller's again."""
        self._ending = True
        self._wake.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(_LONGEST_TURN_S)

    def send(self, receiver: int, message: Any) -> None:
        """Hand a message over; returns at once."""
        frame = _packed(message)
        with self._changed:
            self._outbox.append((receiver, frame))
        self._wake.set()

    def get(self, timeout_s: float | None) -> tuple[int, Any] | None:
        """Return the next message and its sender; None when none has come in time.

        Raises
        ------
        InterruptedRunError
            If MPI has failed.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._inbox or self._failure, timeout_s)
            if self._inbox:
                return self._inbox.popleft()
        if self._failure is not None:
            raise InterruptedRunError(f"MPI has failed ({self._failure}); run the same command again")
        return None

    def waiting(self) -> tuple[Any, ...]:
        """Return the messages that have come and not been taken."""
        if not self._inbox:
            return ()
        with self._changed:
            return tuple(message for _, message in self._inbox)

    def empty(self) -> bool:
        """Whether no message waits."""
        return not self._inbox

    def flush(self, timeout_s: float) -> bool:
        """Wait until all messages have gone; return whether they have."""
        deadline = time.monotonic() + timeout_s
        while (self._outbox or self._under_way) and self._thread.is_alive():
            if time.monotonic() >= deadline:
                return False
            time.sleep(0.001)
        return True

    def set_patience(self, patience_s: float) -> None:
        """Change the patience: all peers are heard of now, and hear at once."""
        with self._changed:
            self.patience_s = patience_s
            self._peers = dict.fromkeys(self._peers, self._now_s + START_S)
            self._next_beat_s = 0.0
        self._wake.set()

    def advance(self) -> None:
        """The main thread is getting on with its work; goes out with the next sign of life."""
        self._progress += 1

    def forget(self, peer: int) -> None:
        """Send a peer nothing more and watch it no longer."""
        with self._changed:
            self._peers.pop(peer, None)
            self._outbox = deque(item for item in self._outbox if item[0] != peer)

    # -- the thread ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        pause = _PAUSE_SHORTEST_S
        try:
            while not self._ending:
                busy = self._turn()
                pause = _PAUSE_SHORTEST_S if busy else min(2 * pause, _PAUSE_LONGEST_S)
                if self._wake.wait(pause):
                    self._wake.clear()
                    pause = _PAUSE_SHORTEST_S
        except BaseException as error:
            with self._changed:
                self._failure = error
                self._changed.notify_all()
            for peer in tuple(self._peers):
                self.lost(peer, f"MPI has failed: {error}")

    def _turn(self) -> bool:
        """Do what there is to do; return whether there was anything."""
        now = time.monotonic()
        self._now_s += min(now - self._looked_s, _LONGEST_TURN_S)
        self._looked_s = now
        busy = self._receive()
        busy |= self._transmit()
        if self._now_s >= self._next_beat_s:
            self._beat()
        if self._now_s >= self._next_look_s:
            self._look_for_silence()
        self.turned(self._now_s)
        return busy

    def _receive(self) -> bool:
        from mpi4py import MPI

        status, found = MPI.Status(), 0
        source = MPI.ANY_SOURCE if self._sole_peer is None else self._sole_peer
        while found < _BURST:
            waits = False
            with self._noticing_deaths():
                waits = self._comm.Iprobe(source=source, tag=MPI.ANY_TAG, status=status)
            if not waits:
                break
            sender, tag = status.Get_source(), status.Get_tag()
            buffer = bytearray(status.Get_count(MPI.BYTE))
            # Messages of a sender match receives in their order, so this is the one that was found.
            with self._noticing_deaths():
                request = self._comm.Irecv([buffer, MPI.BYTE], source=sender, tag=tag)
                self._arriving[sender, tag].append(_Arriving(request, tag, buffer))
            found += 1
        for sender, tag in tuple(self._arriving):
            self._take_arrived(sender, tag)
        return found > 0

    def _take_arrived(self, sender: int, tag: int) -> None:
        """Take what has come through from a sender, in order; signs of life overtake a large message."""
        queue = self._arriving[sender, tag]
        while queue:
            arrived = None
            with self._noticing_deaths():
                arrived = queue[0].request.Test()
            if arrived is None:  # its sender has died half-way
                queue.clear()
            elif not arrived:
                return
            else:
                self._deliver(sender, queue.popleft())
        del self._arriving[sender, tag]

    def _deliver(self, sender: int, arrived: _Arriving) -> None:
        if sender in self._peers:
            self._peers[sender] = self._now_s
        if arrived.tag == _BEAT:
            (progress,) = struct.unpack("q", arrived.buffer)
            if progress != self._progress_of.get(sender, 0):
                self._progress_of[sender] = progress
                self._put(sender, Beat())
            return
        message = _unpacked(arrived.buffer)
        if not self.taken(sender, message):
            self._put(sender, message)

    def _put(self, sender: int, message: Any) -> None:
        with self._changed:
            self._inbox.append((sender, message))
            self._changed.notify_all()

    def _transmit(self) -> bool:
        sent = bool(self._outbox)
        while self._outbox:
            with self._changed:
                receiver, frame = self._outbox.popleft()
            self._post(receiver, frame, _MESSAGE)
        if self._under_way:
            self._under_way = [item for item in self._under_way if not self._gone_out(item)]
        return sent or bool(self._under_way)

    def _post(self, receiver: int, frame: bytearray, tag: int) -> None:
        if receiver in self._peers:
            with self._noticing_deaths():
                request = self._comm.Isend([frame, self._bytes()], dest=receiver, tag=tag)
                self._under_way.append(_Leaving(receiver, request, frame))

    @staticmethod
    def _bytes() -> Any:
        from mpi4py import MPI

        return MPI.BYTE

    def _gone_out(self, item: _Leaving) -> bool:
        if item.receiver not in self._peers:
            return True
        gone = None
        with self._noticing_deaths():
            gone = item.request.Test()
        return gone is None or bool(gone)

    def _beat(self) -> None:
        """Give a sign of life: to the guard, and to every peer that takes any."""
        self._next_beat_s = self._now_s + self.patience_s / 5
        self._guard.wait(self.patience_s + GUARD_MARGIN_S)
        progress = self._progress
        stuck = {item.receiver for item in self._under_way if len(item.buffer) == _BEAT_BYTES}
        for peer in tuple(self._peers):
            if peer not in stuck:
                self._post(peer, bytearray(struct.pack("q", progress)), _BEAT)  # _BEAT_BYTES

    def _look_for_silence(self) -> None:
        self._next_look_s = self._now_s + min(1.0, self.patience_s / 5)
        for peer, heard_s in tuple(self._peers.items()):
            if self._now_s - heard_s > self.patience_s:
                self._lose(peer, f"no sign of life for {self._now_s - heard_s:.0f} s")

    def _lose(self, peer: int, reason: str) -> None:
        if peer in self._peers:
            self.forget(peer)
            if not self.lost(peer, reason):
                self._put(peer, Gone(reason))

    @contextlib.contextmanager
    def _noticing_deaths(self) -> Iterator[None]:
        """Take note of dead ranks where MPI reports them; what was under way with them is dropped."""
        from mpi4py import MPI

        try:
            yield
        except MPI.Exception as error:
            # ERR_IN_STATUS: one of several requests to a dead rank has failed.
            deaths = (MPI.ERR_PROC_FAILED, MPI.ERR_PROC_FAILED_PENDING, MPI.ERR_IN_STATUS)
            if not (self._fault_tolerant and error.Get_error_class() in deaths):
                raise
            self._comm.Ack_failed()
            failed, everybody = self._comm.Get_failed(), self._comm.Get_group()
            ranks = MPI.Group.Translate_ranks(failed, list(range(failed.Get_size())), everybody)
            for rank in sorted(set(ranks) & self._peers.keys()):
                self._lose(rank, "its process has died")


def _packed(message: Any) -> bytearray:
    """Return a message as bytes: how many parts, their lengths, the pickle, the arrays that it leaves out."""
    arrays: list[pickle.PickleBuffer] = []
    body = pickle.dumps(message, protocol=5, buffer_callback=arrays.append)
    parts = [memoryview(body), *(array.raw() for array in arrays)]
    frame = bytearray(struct.pack(f"q{len(parts)}q", len(parts), *(part.nbytes for part in parts)))
    for part in parts:
        frame += bytes(-len(frame) % _ALIGNMENT)
        frame += part
    return frame


def _unpacked(frame: bytearray) -> Any:
    """Return the message; its arrays share the memory of the frame."""
    (count,) = struct.unpack_from("q", frame)
    lengths = struct.unpack_from(f"{count}q", frame, 8)
    view, start = memoryview(frame), 8 * (1 + count)
    parts = []
    for length in lengths:
        start += -start % _ALIGNMENT
        parts.append(view[start : start + length])
        start += length
    return pickle.loads(parts[0], buffers=parts[1:])
