"""A rank of benchmarks/scheduling.py: the campaign of tests/helpers/toy_mpi.py, its tasks asleep for a while.

python -m benchmarks.scheduling_ranks FOLDER TASK_S FSYNC_S ARCHIVE [options of toy_mpi.py]

Each rank writes to FOLDER when each of its tasks began and ended, in seconds of this machine's monotonic clock.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "helpers"))

import toy_mpi
from toy_runner import RESULTS

from driver.archive.records import TaskResult
from driver.archive.storage import Storage

LOOK_S = 0.02
"""Between two looks at whether to stop; a stage of dynamics looks about as often."""


def main() -> int:
    """Be one rank."""
    folder, task_s, fsync_s = Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
    del sys.argv[1:4]
    sync = Storage.sync

    def slow_sync(self: Storage, descriptor: int) -> None:
        sync(self, descriptor)
        time.sleep(fsync_s)

    Storage.sync = slow_sync  # type: ignore[method-assign]

    class SleepingRunner(toy_mpi.DeadlyRunner):
        """Takes as long for a task as it was told to, without needing a core for it."""

        def run(self, stage: str, inputs: Sequence[Any], model: Any, stop: Callable[[], bool]) -> Iterator[TaskResult]:
            with (folder / f"{os.getpid()}.jsonl").open("a", encoding="utf-8") as stream:
                for task in inputs:
                    began = time.monotonic()
                    while (left_s := began + task_s - time.monotonic()) > 0:
                        if stop():
                            return
                        time.sleep(min(left_s, LOOK_S))
                    stream.write(json.dumps((began, time.monotonic())) + "\n")
                    stream.flush()
                    yield RESULTS[stage](task.key)

    toy_mpi.DeadlyRunner = SleepingRunner  # type: ignore[misc]
    return toy_mpi.main()


if __name__ == "__main__":
    sys.exit(main())
