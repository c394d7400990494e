"""From the name of a stage to the function that runs it: what a worker computes with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import threadpoolctl
import torch

from driver.archive.records import TaskFailure, TaskResult
from driver.engine.engine import Engine
from driver.models import ModelFile
from driver.settings import Settings
from driver.stages.displace import displace
from driver.stages.dynamics import dynamics
from driver.stages.relax import relax
from driver.tasks import TaskInput

CPU_CAPACITY_ATOMS = 100
"""On a CPU larger batches gain nothing and make leases long: about one supercell."""

GPU_BYTES_PER_ATOM = 6e6
"""Generous for a medium MACE at 6 angstrom in float32; running out of memory halves the batch anyway."""


def visible_gpus() -> int:
    """GPUs that this process sees."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def default_capacity_atoms(device: str) -> int:
    """Atoms that a batch may have on a device, before anything has been measured."""
    if not device.startswith("cuda"):
        return CPU_CAPACITY_ATOMS
    free, _ = torch.cuda.mem_get_info(torch.device(device))
    return max(CPU_CAPACITY_ATOMS, int(0.7 * free / GPU_BYTES_PER_ATOM))


class EngineRunner:
    """Runs stages on one device.

    Parameters
    ----------
    device : str
        In torch's notation.
    threads : int
        CPU threads.
    settings : Settings
    """

    def __init__(self, device: str, threads: int, settings: Settings) -> None:
        # BLAS too: its threads fight torch's for the cores, and its small matrices gain nothing from them.
        self._blas = threadpoolctl.threadpool_limits(1, user_api="blas")
        self._engine = Engine(device, threads, settings.engine)
        self._settings = settings

    def check(self, models: Iterable[ModelFile]) -> None:
        """Load and prepare every model, so that an unusable one is found before any task runs.

        Raises
        ------
        UsageError
            Naming the file, or the heads that it has.
        """
        for model in models:
            self._engine.check(model)
            if "dynamics" in self._settings.stages:
                self._engine.prepare(model, self._settings.dynamics.dtype)

    def run(
        self, stage: str, inputs: Sequence[TaskInput], model: ModelFile, stop: Callable[[], bool]
    ) -> Iterator[TaskResult | TaskFailure]:
        """Run the tasks of a lease; see the stage's own function."""
        settings, engine = self._settings, self._engine
        if stage == "relax":
            return relax(inputs, model, engine, settings.relax)
        if stage == "displace":
            return displace(inputs, model, engine, settings.supercell, settings.displace)
        if stage == "dynamics":
            return dynamics(inputs, model, engine, settings.supercell, settings.dynamics, seed=settings.seed, stop=stop)
        raise ValueError(f"no stage {stage!r}")

    def release_memory(self, error: Exception) -> bool:
        """Return whether an exception says that memory ran out, having given back what torch keeps cached."""
        if isinstance(error, torch.OutOfMemoryError):
            torch.cuda.empty_cache()
            return True
        return isinstance(error, MemoryError) or "can't allocate memory" in str(error)
