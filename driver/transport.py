"""How master and workers talk: in process, or MPI. The only file that imports mpi4py, and only when it is needed."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import socket
import sys
import time
import traceback
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from driver.errors import InterruptedRunError, UsageError
from driver.messages import Beat, Gone, Stop, ToMaster, ToWorker

_LAUNCHED = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK", "PMI_RANK", "PALS_RANKID", "MPI_LOCALNRANKS")
"""Environment variables of which MPI launchers set at least one."""

_POLL_SHORTEST_S, _POLL_LONGEST_S = 5e-5, 0.05

EXIT_CRASHED = 70
"""Exit code of a job that a defect of this program has ended."""

BEAT_S = 5.0
"""While a lease runs, how often a worker says that it is alive (where its stage looks up)."""

_CLOSE_S = 10.0


class Handler(Protocol):
    """What a worker is to a transport."""

    def start(self) -> Iterator[ToMaster]:
        """Messages to send before any work."""
        ...

    def handle(self, message: ToWorker) -> Iterator[ToMaster]:
        """Deal with one message, yielding answers as they arise."""
        ...


class MasterTransport(Protocol):
    """The master's end."""

    workers: tuple[int, ...]
    survives_deaths: bool

    def send(self, worker: int, message: ToWorker) -> None:
        """Hand a message over; returns at once."""
        ...

    def receive(self, timeout_s: float) -> tuple[int, ToMaster] | None:
        """Return the next message and who sent it, or None when none has come in time."""
        ...

    def ready(self) -> bool:
        """Whether `receive` would return a message at once."""
        ...

    def abandon(self, worker: int) -> None:
        """Send nothing more to a worker, and do not wait for it at the end."""
        ...

    def close(self) -> None:
        """Wait until all that was sent has been taken."""
        ...


class InProcessTransport:
    """One worker in the master's own process: it computes whenever the master waits for a message."""

    def __init__(self) -> None:
        self.workers: tuple[int, ...] = (0,)
        self.survives_deaths = False
        self._inbox: deque[ToWorker] = deque()

    def attach(self, worker: Handler) -> None:
        """Say who the worker is."""
        self._worker = worker
        self._running: Iterator[ToMaster] = worker.start()

    def pending(self) -> Sequence[ToWorker]:
        """Messages that the worker has not dealt with yet."""
        return tuple(self._inbox)

    def send(self, worker: int, message: ToWorker) -> None:
        """Put a message in the worker's inbox."""
        self._inbox.append(message)

    def receive(self, timeout_s: float) -> tuple[int, ToMaster] | None:
        """Let the worker compute until it has something to say."""
        while True:
            answer = next(self._running, None)
            if answer is not None:
                return 0, answer
            if not self._inbox:
                return None
            self._running = self._worker.handle(self._inbox.popleft())

    def ready(self) -> bool:
        """Never: a message costs computing first, and what is finished should be committed before."""
        return False

    def abandon(self, worker: int) -> None:
        """Never asked for: this worker dies with its master."""

    def close(self) -> None:
        """Nothing is under way."""


class MPIMaster:
    """The master's end over MPI. Sends never block, so master and worker cannot wait for each other.

    Under an MPI with fault tolerance (ULFM) the death of a worker arrives as a message, `Gone`; any other MPI error,
    and any without fault tolerance, ends the run.
    """

    def __init__(self, comm: Any) -> None:
        self._comm = comm
        self._sends: list[tuple[int, Any]] = []
        self._dead: set[int] = set()
        self._gone: deque[int] = deque()
        self.workers: tuple[int, ...] = tuple(range(1, comm.Get_size()))
        self.survives_deaths = survives_deaths()

    def send(self, worker: int, message: ToWorker) -> None:
        """Start sending; to a dead worker nothing."""
        self._sends = self._under_way()
        if worker not in self._dead:
            with self._noticing_deaths():
                self._sends.append((worker, self._comm.isend(message, dest=worker)))

    def receive(self, timeout_s: float) -> tuple[int, ToMaster] | None:
        """Poll with growing pauses, so that an idle master sleeps instead of spinning."""
        with self._noticing_deaths():
            source = _wait_for_message(self._comm, 0.0 if self._gone else time.monotonic() + timeout_s)
            if source is not None:
                return source, self._comm.recv(source=source)
        return (self._gone.popleft(), Gone("its process has died")) if self._gone else None

    def ready(self) -> bool:
        """A message is waiting."""
        with self._noticing_deaths():
            return bool(self._gone) or bool(self._comm.iprobe())
        return True  # type: ignore[unreachable]  # a death has been noticed, which is a message

    def abandon(self, worker: int) -> None:
        """Send nothing more to a worker, and do not wait for it at the end."""
        self._dead.add(worker)

    def close(self) -> None:
        """Wait until the workers have taken what was sent, but not for one that takes nothing."""
        deadline = time.monotonic() + _CLOSE_S
        while self._sends and time.monotonic() < deadline:
            self._sends = self._under_way()
            time.sleep(_POLL_LONGEST_S / 10)

    def _under_way(self) -> list[tuple[int, Any]]:
        left = []
        for worker, request in self._sends:
            done = worker in self._dead
            if not done:
                with self._noticing_deaths():
                    done = request.test()[0]
            if not done and worker not in self._dead:
                left.append((worker, request))
        return left

    @contextlib.contextmanager
    def _noticing_deaths(self) -> Iterator[None]:
        from mpi4py import MPI

        try:
            yield
        except MPI.Exception as error:
            # ERR_IN_STATUS: one of several requests to a dead rank has failed.
            deaths = (MPI.ERR_PROC_FAILED, MPI.ERR_PROC_FAILED_PENDING, MPI.ERR_IN_STATUS)
            death = error.Get_error_class() in deaths
            if not (death and self.survives_deaths):
                raise InterruptedRunError(f"MPI has failed ({error}); run the same command again") from error
            self._comm.Ack_failed()
            failed, everybody = self._comm.Get_failed(), self._comm.Get_group()
            ranks = MPI.Group.Translate_ranks(failed, list(range(failed.Get_size())), everybody)
            for worker in sorted(set(ranks) - self._dead):
                self.abandon(worker)
                self._gone.append(worker)


def _finalize() -> None:
    """End MPI with this process. Where ranks may die unnoticed, do not: the others would wait for them for ever."""
    from mpi4py import MPI

    if not survives_deaths():
        MPI.Finalize()


def survives_deaths() -> bool:
    """Whether this MPI goes on when a rank dies: Open MPI under `mpirun --with-ft ulfm`."""
    return os.environ.get("OMPI_MCA_mpi_ft_enable") == "1"  # noqa: SIM112


def _wait_for_message(comm: Any, deadline: float | None, source: int | None = None) -> int | None:
    from mpi4py import MPI

    status = MPI.Status()
    pause = _POLL_SHORTEST_S
    while not comm.iprobe(source=MPI.ANY_SOURCE if source is None else source, status=status):
        if deadline is not None and time.monotonic() >= deadline:
            return None
        time.sleep(pause)
        pause = min(2 * pause, _POLL_LONGEST_S)
    return int(status.Get_source())


class MPIWorker:
    """A worker's end over MPI."""

    def __init__(self, comm: Any) -> None:
        self._comm = comm
        self._inbox: deque[ToWorker] = deque()
        self._sends: list[Any] = []
        self._busy = False
        self._last_beat = 0.0

    def pending(self) -> Sequence[ToWorker]:
        """Messages that have come and not been dealt with; cheap enough to ask for between time steps.

        Raises
        ------
        MasterGoneError
            If the master has died.
        """
        with _master_may_die():
            while self._comm.iprobe(source=0):
                self._inbox.append(self._comm.recv(source=0))
            if self._busy and time.monotonic() - self._last_beat > BEAT_S:
                self._last_beat = time.monotonic()
                self._sends.append(self._comm.isend(Beat(), dest=0))
        return tuple(self._inbox)

    def serve(self, worker: Handler) -> None:
        """Run a worker until it is told to stop. Its answers are sent as it yields them."""
        self._post(worker.start())
        while True:
            if not self._inbox:
                with _master_may_die():
                    _wait_for_message(self._comm, None, source=0)
                self.pending()
            message = self._inbox.popleft()
            if isinstance(message, Stop):
                break
            self._busy, self._last_beat = True, time.monotonic()
            self._post(worker.handle(message))
            self._busy = False
        deadline = time.monotonic() + _CLOSE_S
        with _master_may_die():
            while self._sends and time.monotonic() < deadline:  # the master may have ended in haste
                self._sends = [request for request in self._sends if not request.test()[0]]
                time.sleep(_POLL_SHORTEST_S)

    def _post(self, answers: Iterator[ToMaster]) -> None:
        for answer in answers:
            with _master_may_die():
                self._sends = [request for request in self._sends if not request.test()[0]]
                self._sends.append(self._comm.isend(answer, dest=0))


class MasterGoneError(BaseException):
    """The master has died. No task's failure, so no handler of tasks' exceptions may catch it."""


@contextlib.contextmanager
def _master_may_die() -> Iterator[None]:
    from mpi4py import MPI

    try:
        yield
    except MPI.Exception as error:
        raise MasterGoneError(str(error)) from error


@dataclass(frozen=True)
class World:
    """This process among the others.

    Attributes
    ----------
    rank, size : int
    local_worker, local_workers : int
        Index among the workers of this node, and their number.
    core_sharers : int
        Workers of this node that may run on the same cores as this one.
    comm : communicator or None
        None without MPI.
    """

    rank: int = 0
    size: int = 1
    local_worker: int = 0
    local_workers: int = 1
    core_sharers: int = 1
    comm: Any = None

    @property
    def alone(self) -> bool:
        """Master and worker share this process."""
        return self.size == 1

    @property
    def host(self) -> str:
        """Name of this node."""
        return socket.gethostname()

    def leave(self, code: int) -> None:
        """End this process at once, without parting, in such a way that the others do not wait for it in vain."""
        if self.comm is None:
            os._exit(code)
        if survives_deaths():
            # The others notice a killed process, not one that exits; and a launcher told to abort would wait for ever.
            os.kill(os.getpid(), signal.SIGKILL)
        self.comm.Abort(code)

    def broadcast(self, value: Any) -> Any:
        """Return the master's `value` on every rank."""
        return value if self.comm is None else self.comm.bcast(value, root=0)

    def barrier(self) -> None:
        """Wait for all ranks, asleep rather than spinning."""
        if self.comm is None:
            return
        request = self.comm.Ibarrier()
        while not request.Test():
            time.sleep(_POLL_LONGEST_S)


def connect() -> World:
    """Find out how this process was launched; imports mpi4py only under an MPI launcher.

    Raises
    ------
    UsageError
        If a launcher started several processes that MPI does not know of each other, or mpi4py cannot be loaded.
    """
    if not any(name in os.environ for name in _LAUNCHED):
        tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
        if tasks > 1:
            raise UsageError(_not_connected(tasks))
        return World()
    try:
        import mpi4py

        mpi4py.rc.finalize = False  # `_finalize` does, or does not
        from mpi4py import MPI
        from mpi4py.util import pkl5
    except (ImportError, RuntimeError) as error:
        raise UsageError(
            f"an MPI launcher started this process but mpi4py cannot be loaded ({error}); "
            "install it for this machine's MPI (pip install mpi4py) or run without the launcher"
        ) from error
    atexit.register(_finalize)
    comm = pkl5.Intracomm(MPI.COMM_WORLD)
    if survives_deaths():
        comm.Set_errhandler(MPI.ERRORS_RETURN)
    size = comm.Get_size()
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", size))
    if size == 1 and tasks > 1:
        raise UsageError(_not_connected(tasks))
    cores = tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else ()
    # Slurm's name as well: several of its nodes can be one host, and under mpirun every rank may have the first one's.
    ranks = comm.allgather((socket.gethostname(), os.environ.get("SLURMD_NODENAME", ""), cores))
    here = ranks[comm.Get_rank()][:2]
    mine = [r for r in range(size) if ranks[r][:2] == here and (r > 0 or size == 1)]
    return World(
        rank=comm.Get_rank(),
        size=size,
        local_worker=mine.index(comm.Get_rank()) if comm.Get_rank() in mine else 0,
        local_workers=len(mine),
        core_sharers=max(1, sum(ranks[r][2] == cores for r in mine)),
        comm=comm,
    )


def abort_on_error(world: World) -> None:
    """Let an uncaught exception on any rank end the whole job at once instead of leaving the others waiting."""
    if world.comm is None:
        return

    def hook(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        traceback.print_exception(kind, error, trace)
        sys.stderr.flush()
        world.comm.Abort(EXIT_CRASHED)

    sys.excepthook = hook


def _not_connected(tasks: int) -> str:
    return (
        f"the launcher started {tasks} processes, but MPI does not connect them: each believes to be alone; "
        "start with srun --mpi=pmi2 (MPICH) or --mpi=pmix (Open MPI), or with this MPI's own mpirun"
    )
