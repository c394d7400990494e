"""A rank of a campaign with made-up numerics, for tests that kill ranks: no torch, so it starts in a second.

    PYTHONPATH=.:tests/helpers mpirun --with-ft ulfm -n 4 python tests/helpers/toy_mpi.py ARCHIVE --kills M2

Prints `rank PID` for each rank on starting; the master ends with the driver's exit codes.
"""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from archive_samples import HEADER, material, model
from toy_runner import ToyRunner

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
from driver.tasks import TaskInput, TaskSpec
from driver.transport import (
    InProcessTransport,
    MasterGoneError,
    MPIMaster,
    MPIWorker,
    World,
    abort_on_error,
    connect,
)
from driver.worker import Worker, WorkerIdentity

SEGMENTS = 3


@dataclass
class DeadlyRunner(ToyRunner):
    """Makes results up, but one material's dynamics kills, or stops, the process that runs it."""

    kills: str = ""
    stops: str = ""

    def run(
        self, stage: str, inputs: Sequence[TaskInput], model: ModelFile, stop: Callable[[], bool]
    ) -> Iterator[TaskResult | TaskFailure]:
        """Die, hang, or yield made-up results."""
        materials = [task.key.material for task in inputs]
        if stage == "dynamics" and self.kills in materials:
            os.kill(os.getpid(), signal.SIGKILL)
        if stage == "dynamics" and self.stops in materials:
            os.kill(os.getpid(), signal.SIGSTOP)
        return super().run(stage, inputs, model, stop)


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


def lead(world: World, options: argparse.Namespace, worker: Callable[..., Worker]) -> int:
    """Be the master."""
    execution = ExecutionSettings(grace_s=0.2, patience_s=options.patience)
    with Interrupts() as interrupts, open_archive(options.archive, options.materials) as writer:
        writer.leave = world.leave
        if options.give_up:
            writer.commit = partial(give_up, writer, writer.commit, options.give_up)  # type: ignore[method-assign]
        log_to(options.archive.with_name("driver.log"), debug=False)
        if world.alone:
            transport = InProcessTransport()
            transport.attach(worker(transport.pending, interrupts))
        else:
            transport = MPIMaster(world.comm)
        scheduler = Scheduler(tasks(options.materials), writer.view.task_states(), workers_expected=world.size - 1)
        master = Master(scheduler, transport, writer, interrupts, LogProgress(1.0), execution, host=world.host)
        summary = master.run()
    return 75 if summary.interrupted_by else int(summary.counts.quarantined > 0)


def main() -> int:
    """Be one rank."""
    parser = argparse.ArgumentParser()
    parser.add_argument("archive", type=Path)
    parser.add_argument("--materials", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=0.0)
    parser.add_argument("--patience", type=float, default=600.0)
    parser.add_argument("--capacity", type=int, default=8)
    parser.add_argument("--kills", default="")
    parser.add_argument("--give-up", type=int, default=0)
    parser.add_argument("--stops", default="")
    options = parser.parse_args()
    world = connect()
    abort_on_error(world)
    print(f"rank {world.rank} is {os.getpid()}", flush=True)
    runner = DeadlyRunner(seconds=options.seconds, kills=options.kills, stops=options.stops)
    models = {"m": ModelFile("m", Path("m.model"), "0")}
    identity = WorkerIdentity(world.rank, world.host, "cpu", options.capacity)

    def worker(pending: Callable[..., object], interrupts: Interrupts) -> Worker:
        return Worker(identity, models, runner, pending, interrupts, grace_s=0.2)  # type: ignore[arg-type]

    try:
        if world.rank == 0:
            return lead(world, options, worker)
        with Interrupts() as interrupts:
            port = MPIWorker(world.comm)
            port.serve(worker(port.pending, interrupts))
        return 0
    except MasterGoneError:
        return 75
    except (LatdynError, ArchiveError) as error:
        print(f"latdyn: {error}", file=sys.stderr, flush=True)
        return exit_code_of(error)


if __name__ == "__main__":
    sys.exit(main())
