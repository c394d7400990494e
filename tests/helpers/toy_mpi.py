"""A rank of a campaign with made-up numerics, for tests that kill ranks: no torch, so it starts in a second.

    PYTHONPATH=.:tests/helpers mpirun --with-ft ulfm -n 4 python tests/helpers/toy_mpi.py ARCHIVE --kills M2

Prints `rank N is PID` for each rank on starting; the master ends with the driver's exit codes. With `--hold
RANK:PHASE` that rank prints `rank N holds PHASE` when it comes to a phase (see `PHASES`), and waits there for a while,
for a test to send it a signal.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from archive_samples import HEADER, material, model
from toy_runner import ToyRunner, failure

from driver.archive.records import ArchiveError, Attempt, TaskFailure, TaskKey, TaskResult
from driver.archive.writer import ArchiveWriter
from driver.batch_size import BatchSize
from driver.errors import LatdynError
from driver.interrupts import Interrupts
from driver.master import Master
from driver.models import ModelFile
from driver.progress import LogProgress, log_to
from driver.run import exit_code_of
from driver.scheduler import Scheduler
from driver.settings import ExecutionSettings
from driver.tasks import Counts, TaskInput, TaskSpec
from driver.transport import (
    InProcessTransport,
    MasterTransport,
    MPIMaster,
    MPIWorker,
    World,
    abort_on_error,
    connect,
)
from driver.worker import Worker, WorkerIdentity

SEGMENTS = 3


PHASES = ("loading", "before Hello", "idle", "running", "after the last result", "draining")
HOLD_S = 4.0


@dataclass(frozen=True)
class Hold:
    """Where a rank is to wait for its signal."""

    rank: int = -1
    phase: str = ""

    @classmethod
    def parse(cls, text: str) -> Hold:
        """From `RANK:PHASE`."""
        rank, _, phase = text.partition(":")
        assert phase in PHASES, phase
        return cls(int(rank), phase)

    def at(self, rank: int, phase: str) -> None:
        """Wait, if this is the rank and the phase."""
        if (rank, phase) == (self.rank, self.phase):
            print(f"rank {rank} holds {phase}", flush=True)
            time.sleep(HOLD_S)


def rank_by_environment() -> int:
    """This process's rank, before MPI has been asked."""
    names = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK", "SLURM_PROCID")
    return next((int(os.environ[name]) for name in names if name in os.environ), 0)


@dataclass
class DeadlyRunner(ToyRunner):
    """Makes results up, but one material's dynamics kills, or stops, the process that runs it."""

    kills: str = ""
    stops: str = ""
    rank: int = 0
    hold: Hold = field(default_factory=Hold)
    refuses: str = ""
    broken: str = ""
    deaf_s: float = 0.0

    def check(self, models: Iterable[ModelFile], stop: Callable[[], bool] = lambda: False) -> Iterator[str]:
        """Make ready, or refuse."""
        self.hold.at(self.rank, "before Hello")
        if (self.rank, "idle") == (self.hold.rank, self.hold.phase):
            time.sleep(1.0)  # the others take all there is
            print(f"rank {self.rank} holds idle", flush=True)
        if str(self.rank) in self.refuses.split(","):
            raise RuntimeError("no GPU here")
        yield from super().check(models, stop)

    def run(
        self, stage: str, inputs: Sequence[TaskInput], model: ModelFile, stop: Callable[[], bool]
    ) -> Iterator[TaskResult | TaskFailure]:
        """Die, hang, or yield made-up results."""
        materials = [task.key.material for task in inputs]
        if stage == "dynamics" and self.kills in materials:
            os.kill(os.getpid(), signal.SIGKILL)
        if stage == "dynamics" and self.stops in materials:
            os.kill(os.getpid(), signal.SIGSTOP)
        if str(self.rank) in self.broken.split(","):
            for task in inputs:
                yield failure(task.key, RuntimeError("wrong sums"))
            return
        if self.deaf_s:  # a computation that cannot be interrupted
            time.sleep(self.deaf_s)
        if (self.rank, "draining") == (self.hold.rank, self.hold.phase):
            print(f"rank {self.rank} runs", flush=True)  # now is the time for a request to drain
        self.hold.at(self.rank, "running")
        yield from super().run(stage, inputs, model, stop)
        self.hold.at(self.rank, "draining" if stop() else "after the last result")


def tasks(materials: int) -> list[TaskSpec]:
    """Tasks of a campaign of so many materials."""
    specs = []
    for index in range(materials):
        relax = TaskKey(f"M{index}", "m", "relax")
        specs += [
            TaskSpec(relax, BatchSize(4, 100), 4.0),
            TaskSpec(TaskKey(f"M{index}", "m", "displace"), BatchSize(4, 100), 4.0, (relax,)),
        ]
        before = relax
        for segment in range(SEGMENTS):
            key = TaskKey(f"M{index}", "m", "dynamics", segment)
            specs.append(TaskSpec(key, BatchSize(4, 100), 4.0, (before,)))
            before = key
    return specs


def open_archive(path: Path, materials: int) -> ArchiveWriter:
    """Open the archive, or create it with its materials."""
    writer = ArchiveWriter.open(path) if path.exists() else ArchiveWriter.create(path, HEADER)
    writer.add_materials([material(f"M{index}") for index in range(materials)])
    writer.add_models([model("m")])
    return writer


def give_up(writer: ArchiveWriter, commit: Callable[..., None], after: int, attempts: Sequence[Attempt]) -> None:
    """Commit, and after so many results behave as when the file can no longer be read."""
    if len(writer.view.task_states()) >= after:
        writer._file.give_up(OSError(errno.EIO, "Input/output error"))  # type: ignore[misc]
    commit(attempts)


class Announcing(LogProgress):
    """Waits in the phases that a master has, too."""

    def __init__(self, hold: Hold, interrupts: Interrupts) -> None:
        super().__init__(1.0)
        self._hold, self._interrupts = hold, interrupts
        self._held: set[str] = set()

    def update(self, counts: Counts, remaining_cost: float, workers: int) -> None:
        """Called several times a second."""
        phase = "draining" if self._interrupts.requested else "running" if counts.done >= 3 else "before Hello"
        if phase not in self._held:
            self._held.add(phase)
            self._hold.at(0, phase)


def lead(world: World, options: argparse.Namespace, worker: Callable[..., Worker]) -> int:
    """Be the master."""
    execution = ExecutionSettings(grace_s=options.grace, patience_s=options.patience)
    with contextlib.ExitStack() as stack:
        interrupts = stack.enter_context(Interrupts())
        port = None
        if not world.alone:
            port = MPIMaster(world)
            stack.callback(port.part)  # last of all
        writer = stack.enter_context(open_archive(options.archive, options.materials))
        writer.leave = world.leave
        if options.give_up:
            writer.commit = partial(give_up, writer, writer.commit, options.give_up)  # type: ignore[method-assign]
        log_to(options.archive.with_name("driver.log"), debug=False)
        transport: MasterTransport
        if port is None:
            transport = InProcessTransport()
            transport.attach(worker(transport.pending, interrupts))
        else:
            port.begin(None, options.patience)
            transport = port
        scheduler = Scheduler(tasks(options.materials), writer.view.task_states(), workers_expected=world.size - 1)
        progress = Announcing(options.hold, interrupts)
        summary = Master(scheduler, transport, writer, interrupts, progress, execution, host=world.host).run()
    return 75 if summary.interrupted_by else int(summary.counts.quarantined > 0)


def follow(world: World, options: argparse.Namespace, worker: Callable[..., Worker]) -> int:
    """Be a worker."""
    with Interrupts() as interrupts:
        port = MPIWorker(world)
        port.launch()
        port.set_patience(options.patience)
        port.serve(worker(port.pending, interrupts))
    return 0


def parse() -> argparse.Namespace:
    """Options of the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("archive", type=Path)
    parser.add_argument("--materials", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--patience", type=float, default=300.0)
    parser.add_argument("--grace", type=float, default=0.2)
    parser.add_argument("--capacity", type=int, default=8)
    parser.add_argument("--kills", default="", help="material whose dynamics kills its worker")
    parser.add_argument("--stops", default="", help="material whose dynamics stops its worker")
    parser.add_argument("--give-up", type=int, default=0)
    parser.add_argument("--hold", type=Hold.parse, default=Hold(), metavar="RANK:PHASE")
    parser.add_argument("--refuses", default="", help="ranks that cannot be set up, separated by commas")
    parser.add_argument("--broken", default="", help="ranks on which every task fails")
    parser.add_argument("--deaf", type=float, default=0.0, help="seconds of each lease that cannot be interrupted")
    return parser.parse_args()


def main() -> int:
    """Be one rank."""
    options = parse()
    print(f"rank {rank_by_environment()} is {os.getpid()}", flush=True)
    guess = rank_by_environment()
    options.hold.at(guess, "loading")
    world = connect(options.patience)
    abort_on_error(world)
    runner = DeadlyRunner(
        seconds=options.seconds,
        kills=options.kills,
        stops=options.stops,
        rank=world.rank,
        hold=options.hold,
        refuses=options.refuses,
        broken=options.broken,
        deaf_s=options.deaf,
    )
    models = {"m": ModelFile("m", Path("m.model"), "0")}
    identity = WorkerIdentity(world.rank, world.host, "cpu", options.capacity)

    def worker(pending: Callable[..., object], interrupts: Interrupts) -> Worker:
        return Worker(identity, models, runner, pending, interrupts, grace_s=options.grace)  # type: ignore[arg-type]

    try:
        code = follow(world, options, worker) if world.rank else lead(world, options, worker)
    except (LatdynError, ArchiveError) as error:
        print(f"latdyn: {error}", file=sys.stderr, flush=True)
        code = exit_code_of(error)
    world.end(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
