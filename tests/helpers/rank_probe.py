"""Stands in for `python` in jobs/slurm.sbatch: `run` only tells what a rank sees; everything else is the real thing.

`$PROBE_FILE.RANK` gets a line of JSON for each run. With `$PROBE_WAIT` set, a rank then waits for a signal, as a run
that is interrupted before its first commit does, and rank 0 exits 75.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from driver.devices import assign_device
from driver.interrupts import Interrupts
from driver.patience import PATIENCE_S
from driver.transport import World, connect


def visible_gpus() -> int:
    """GPUs that a CUDA program would see."""
    return len([gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu])


def seen(world: World, overrides: list[str]) -> dict[str, object]:
    """What this rank was given, and what Latdyn makes of it."""
    worker = world.rank > 0
    return {
        "rank": world.rank,
        "size": world.size,
        "pid": os.getpid(),
        "node": os.environ["SLURMD_NODENAME"],
        "visible": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
        "device": assign_device("auto", world.local_worker, world.local_workers, visible_gpus()) if worker else "",
        "omp_threads": os.environ.get("OMP_NUM_THREADS"),
        "restart": int(os.environ.get("SLURM_RESTART_COUNT", "0")),
        "overrides": overrides,
    }


def main() -> int:
    """Tell what is seen; wait if asked to."""
    if sys.argv[1:4] != ["-m", "driver", "run"]:
        os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
    world = connect(PATIENCE_S)
    with Interrupts() as interrupts, Path(f"{os.environ['PROBE_FILE']}.{world.rank}").open("a") as file:
        print(json.dumps(seen(world, sys.argv[4:])), file=file, flush=True)
        if "PROBE_WAIT" in os.environ:
            while not interrupts.requested:
                time.sleep(0.05)
            print(json.dumps({"signal": interrupts.name}), file=file, flush=True)
    code = 75 if world.rank == 0 and "PROBE_WAIT" in os.environ else 0
    world.end(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
