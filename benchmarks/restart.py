"""Cost of starting again: opening a large archive and rebuilding the queue of what is left.

python -m benchmarks.restart [--materials 2000] [--models 4] [--segments 20]

Half of the tasks are done. The peer in the same run: reading the same table with plain h5py, the least that any restart
must do.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from pathlib import Path

import h5py

from benchmarks.archive import build_large, material
from driver.archive.writer import ArchiveWriter
from driver.batch_size import BatchSize
from driver.campaign import build_tasks
from driver.scheduler import Scheduler
from driver.settings import DynamicsSettings, Settings


def main() -> None:
    """Build a large archive and print what each step of a restart takes."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for name, default in (("materials", 2000), ("models", 4), ("segments", 20)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    # Twice as many segments are asked for as the archive has.
    dynamics = DynamicsSettings(equilibration_ps=0.0, production_ps=2.0 * options.segments, segment_ps=1.0)
    settings = Settings("benchmark", dynamics=dynamics)
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "archive.h5"
        done = build_large(path, options.materials, options.models, options.segments)
        clock = [("", time.perf_counter())]
        with h5py.File(path, "r", locking=False) as plain:
            plain["tables/tasks"][()]
        clock.append(("plain h5py reads the table of tasks", time.perf_counter()))
        with ArchiveWriter.open(path) as writer:
            clock.append(("open for writing", time.perf_counter()))
            states = writer.view.task_states()
            clock.append(("state of every task", time.perf_counter()))
            models = [f"model-{number}" for number in range(options.models)]
            tasks = build_tasks([material(n) for n in range(options.materials)], models, settings)
            clock.append(("list of all tasks", time.perf_counter()))
            scheduler = Scheduler(tasks, states)
            scheduler.add_worker(1, BatchSize(10_000))
            leases = scheduler.assign()
            clock.append(("queue, and the first leases", time.perf_counter()))
    print(
        f"{done} tasks done of {scheduler.counts.total}; "
        f"first leases: {sum(len(lease.tasks) for lease in leases)} tasks"
    )
    for (_, before), (what, after) in itertools.pairwise(clock):
        print(f"{what:<40}{after - before:8.2f} s")
    print(f"{'restart':<40}{clock[-1][1] - clock[1][1]:8.2f} s")


if __name__ == "__main__":
    main()
