"""Who the ranks are, how they come together, and how they part."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from driver.errors import UsageError
from driver.guard import Guard, is_alive, launched_as_rank, ranks_beside, running_system, start_of
from driver.transport.mailbox import GUARD_MARGIN_S, Mailbox

EXIT_INTERRUPTED = 75
EXIT_CRASHED = 70
"""Exit code of a job that a defect of this program has ended."""

START_MARGIN_S = 8.0
"""Besides the patience, for ranks to come together: processes do not all start at the same time."""

LOOK_S = 2.0
"""Between two looks at the other ranks of this machine while they come together."""

LEAVE_S = 10.0
"""How long a rank may take to leave at least; MPI_Finalize would wait for ever for one that has been lost unnoticed."""


@dataclass(frozen=True)
class _Process:
    """A rank as the operating systems know it.

    Attributes
    ----------
    host, node : str
        Name of the machine, and Slurm's name of the node: several of its nodes can be one host.
    cores : tuple of int
        That it may run on; () where the system does not say.
    pid : int
    started, system : str
        What tells this process from a later one of its number, and this running system (or container) from others.
    """

    host: str
    node: str
    cores: tuple[int, ...]
    pid: int
    started: str
    system: str

    @classmethod
    def present(cls) -> _Process:
        cores = tuple(sorted(os.sched_getaffinity(0))) if hasattr(os, "sched_getaffinity") else ()
        node = os.environ.get("SLURMD_NODENAME", "")
        return cls(socket.gethostname(), node, cores, os.getpid(), start_of(os.getpid()), running_system())


class World:
    """This process among the others.

    Parameters
    ----------
    comm : mpi4py communicator or None
        None without MPI.
    processes : sequence of _Process
        Of all ranks.
    guard : Guard or None
    patience_s : float
        After so long without a sign of life a rank is lost.

    Attributes
    ----------
    rank, size : int
    local_worker, local_workers : int
        Index among the workers of this node, and their number.
    core_sharers : int
        Workers of this node that may run on the same cores as this one.
    mailbox : Mailbox
        With MPI only.
    """

    mailbox: Mailbox

    def __init__(
        self,
        comm: Any = None,
        processes: Sequence[_Process] = (),
        guard: Guard | None = None,
        patience_s: float = 0.0,
    ) -> None:
        self._comm = comm
        self._processes = tuple(processes) or (_Process.present(),)
        self._guard = guard
        self._lost: set[int] = set()
        self.rank = 0 if comm is None else int(comm.Get_rank())
        self.size = len(self._processes)
        self._place()
        if comm is not None and guard is not None and self.size > 1:
            peers = [0] if self.rank else list(range(1, self.size))
            self.mailbox = Mailbox(comm, peers, patience_s, guard, fault_tolerant=self.survives_deaths)
            self.mailbox.start()

    def _place(self) -> None:
        """Find this rank's place among the workers of its node."""
        here = self._processes[self.rank]
        mine = [
            rank
            for rank, process in enumerate(self._processes)
            if (process.host, process.node) == (here.host, here.node) and (rank > 0 or self.size == 1)
        ]
        self.local_worker = mine.index(self.rank) if self.rank in mine else 0
        self.local_workers = len(mine)
        self.core_sharers = max(1, sum(self._processes[rank].cores == here.cores for rank in mine))

    @property
    def alone(self) -> bool:
        """Master and worker share this process."""
        return self.size == 1

    @property
    def host(self) -> str:
        """Name of this node."""
        return self._processes[self.rank].host

    @property
    def survives_deaths(self) -> bool:
        """Whether this MPI goes on when a rank dies."""
        return self._comm is not None and survives_deaths()

    def host_of(self, rank: int) -> str:
        """Name of the node that a rank is on."""
        return self._processes[rank].host

    def rank_was_lost(self, rank: int) -> None:
        """Take note of a rank that will not part in order."""
        self._lost.add(rank)
        self.kill_if_here(rank)

    def kill_if_here(self, rank: int) -> None:
        """End the process of a lost rank by SIGKILL, if it is on this machine; elsewhere its guard does that."""
        process, own = self._processes[rank], self._processes[self.rank]
        if rank != self.rank and process.system == own.system and start_of(process.pid) == process.started:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(process.pid, signal.SIGKILL)

    def leave(self, code: int) -> None:
        """End this process at once, in such a way that the others do not wait for it in vain."""
        if self._comm is None or self.alone:
            os._exit(code)
        self._last_words()
        if not self.survives_deaths:
            self._abort(code)
        if self.rank == 0:  # the workers notice a killed process at once, and one that exits after their patience
            os.kill(os.getpid(), signal.SIGKILL)
        os._exit(code)

    def end(self, code: int) -> None:
        """Part from the other ranks at the end of a run; returns unless a rank has been lost.

        Parameters
        ----------
        code : int
            Exit code of this process.
        """
        if self._comm is None:
            return
        sys.stdout.flush()
        if not self.alone:
            self.mailbox.stop()
        self._last_words()
        if self.survives_deaths:
            return  # MPI_Finalize would wait for ranks that have died unnoticed
        if self._lost:
            self._abort(code)
        from mpi4py import MPI

        finalized = threading.Event()
        limit_s = LEAVE_S if self.alone else max(LEAVE_S, self.mailbox.patience_s)
        threading.Thread(target=_exit_unless, args=(finalized, code, limit_s), daemon=True).start()
        # MPI's own function, which leaves the other threads running, the one that waits for this among them.
        with contextlib.suppress(AttributeError, OSError):
            ctypes.CDLL(MPI.__file__).MPI_Finalize()
        if not MPI.Is_finalized():
            MPI.Finalize()
        finalized.set()

    def _last_words(self) -> None:
        """Whatever happens from here on, this process ends soon: if it is stopped now, its guard ends it."""
        sys.stderr.flush()
        if self._guard is not None and not self.alone:
            self.mailbox.stop()
            self._guard.wait(max(LEAVE_S, self.mailbox.patience_s) + GUARD_MARGIN_S)

    def _abort(self, code: int) -> None:
        """End all ranks."""
        threading.Thread(target=_exit_unless, args=(threading.Event(), code, LEAVE_S), daemon=True).start()
        self._comm.Abort(code)
        os._exit(code)

    def crash(self) -> None:
        """End all ranks because of a defect of this program."""
        if self._comm is not None:
            self._comm.Abort(EXIT_CRASHED)


def _exit_unless(done: threading.Event, code: int, seconds: float) -> None:
    if not done.wait(seconds):
        os._exit(code)


def survives_deaths() -> bool:
    """Whether this MPI goes on when a rank dies: Open MPI under `mpirun --with-ft ulfm`."""
    return os.environ.get("OMPI_MCA_mpi_ft_enable") == "1"  # noqa: SIM112


def connect(patience_s: float, guard: Guard | None = None) -> World:
    """Find out how this process was launched; imports mpi4py only under an MPI launcher.

    Parameters
    ----------
    patience_s : float
        How long ranks wait for each other: to come together, and later for signs of life.
    guard : Guard, optional
        Of this process, if it has one already.

    Raises
    ------
    UsageError
        If a launcher started several processes that MPI does not know of each other, or mpi4py cannot be loaded.
    """
    if not launched_as_rank():
        tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
        if tasks > 1:
            raise UsageError(_not_connected(tasks))
        return World()
    # Coming together is collective: one that does not come holds all others up.
    guard = guard or Guard(patience_s + START_MARGIN_S)
    together = threading.Event()
    threading.Thread(target=_exit_alone_unless, args=(together, patience_s + START_MARGIN_S), daemon=True).start()
    guard.wait(patience_s + START_MARGIN_S + 2.0)  # a little longer than this process itself
    comm = _initialized()
    size = comm.Get_size()
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", size))
    if size == 1 and tasks > 1:
        raise UsageError(_not_connected(tasks))
    processes = comm.allgather(_Process.present())
    together.set()
    guard.wait(patience_s + START_MARGIN_S)
    if size == 1:
        guard.dismiss()
    return World(comm, processes, guard, patience_s)


def _initialized() -> Any:
    """Load and initialise MPI; return the communicator of all ranks.

    Raises
    ------
    UsageError
        If mpi4py, or the MPI library behind it, cannot be loaded.
    """
    try:
        import mpi4py

        mpi4py.rc.initialize = mpi4py.rc.finalize = False  # `World.end` finalizes, or does not
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise UsageError(
            f"an MPI launcher started this process but mpi4py cannot be loaded ({error}); "
            "install it for this machine's MPI (pip install mpi4py) or run without the launcher"
        ) from error
    level = MPI.THREAD_SERIALIZED  # one thread at a time, but not always the same
    with contextlib.suppress(AttributeError, OSError):
        # MPI's own function rather than mpi4py's, which keeps all threads waiting until every rank is there.
        ctypes.CDLL(MPI.__file__).MPI_Init_thread(None, None, level, ctypes.byref(ctypes.c_int()))
    if not MPI.Is_initialized():
        MPI.Init_thread(level)
    MPI.COMM_WORLD.Set_errhandler(MPI.ERRORS_RETURN)
    return MPI.COMM_WORLD


def _exit_alone_unless(together: threading.Event, seconds: float) -> None:
    """End this process and those beside it if the ranks do not come together in time, or one of them has died.

    MPI libraries wait for it for ever. One that was stopped early has no guard, and nobody else to end it.
    """
    began, beside, missing = time.monotonic(), set(ranks_beside()), 0
    names = ("OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS")
    started = next((int(os.environ[name]) for name in names if name in os.environ), 0)
    while not together.wait(LOOK_S):
        waited_s = time.monotonic() - began
        beside |= set(ranks_beside())
        alive = sum(map(is_alive, beside))
        # Seen twice: a rank that came through may have ended while this one was held up.
        died = missing and max(len(beside), started - 1) - alive
        missing = max(len(beside), started - 1) - alive
        if waited_s > seconds or died:
            why = "one has died" if died else "one is missing, or stopped"
            text = f"latdyn: the ranks did not come together in {waited_s:.0f} s: {why}; run the same command again"
            print(text, file=sys.stderr, flush=True)
            for process in ranks_beside():
                with contextlib.suppress(OSError):
                    os.kill(process, signal.SIGKILL)
            os._exit(EXIT_INTERRUPTED)


def abort_on_error(world: World) -> None:
    """Let an uncaught exception on any rank end the whole job at once instead of leaving the others waiting."""
    if world.alone:
        return

    def hook(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        traceback.print_exception(kind, error, trace)
        sys.stderr.flush()
        world.crash()

    sys.excepthook = hook


def _not_connected(tasks: int) -> str:
    return (
        f"the launcher started {tasks} processes, but MPI does not connect them: each believes to be alone; "
        "start with srun --mpi=pmi2 (MPICH) or --mpi=pmix (Open MPI), or with this MPI's own mpirun"
    )
