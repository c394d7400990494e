"""From the name of a stage to the function that runs it: what a worker computes with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import threadpoolctl
import torch

from driver.archive.records import TaskFailure, TaskResult
from driver.batch_size import Memory
from driver.engine.engine import Engine
from driver.engine.memory import MemoryMeter, ran_out
from driver.models import ModelFile
from driver.settings import Settings
from driver.stages.displace import displace
from driver.stages.dynamics import dynamics
from driver.stages.relax import relax
from driver.tasks import TaskInput


def visible_gpus() -> int:
    """GPUs that this process sees."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


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
        self._engine = Engine(device, threads, settings.engine, settings.execution.capacity_atoms)
        self._meter = MemoryMeter(device)
        self._settings = settings

    def check(self, models: Iterable[ModelFile], stop: Callable[[], bool] = lambda: False) -> Iterator[str]:
        """Load and prepare every model, so that an unusable one is found before any task runs.

        Yields
        ------
        str
            What takes long, before it does, and which fast evaluator cannot be used.

        Raises
        ------
        UsageError
            Naming the file, or the heads that it has.
        """
        for model in models:
            if stop():
                return
            self._engine.check(model)
            precisions = {"displace": self._settings.displace.dtype, "dynamics": self._settings.dynamics.dtype}
            for stage, dtype in precisions.items():
                if stage in self._settings.stages:
                    if self._engine.must_compile(model, dtype, stage):
                        yield f"model {model.key}: preparing symmetrix in {dtype}; takes minutes, once per kind of CPU"
                    self._engine.prepare(model, dtype, stage, stop)
                    yield from self.notices()

    def run(
        self, stage: str, inputs: Sequence[TaskInput], model: ModelFile, stop: Callable[[], bool]
    ) -> Iterator[TaskResult | TaskFailure]:
        """Run the tasks of a lease; see the stage's own function."""
        settings, engine = self._settings, self._engine
        self._meter.start()
        if stage == "relax":
            return relax(inputs, model, engine, settings.relax, stop=stop)
        if stage == "displace":
            return displace(inputs, model, engine, settings.supercell, settings.displace, stop=stop)
        if stage == "dynamics":
            return dynamics(inputs, model, engine, settings.supercell, settings.dynamics, seed=settings.seed, stop=stop)
        raise ValueError(f"no stage {stage!r}")

    def notices(self) -> list[str]:
        """Return where the reference had to take the place of the fast evaluator since the last call."""
        return self._engine.take_notices()

    def memory(self) -> Memory | None:
        """Return what the last run needed on a GPU."""
        return self._meter.read()

    def release_memory(self, error: Exception) -> bool:
        """Return whether an exception says that memory ran out, having given back what torch keeps cached."""
        if not ran_out(error):
            return False
        torch.cuda.empty_cache()
        return True

    def defect(self) -> str:
        """Return why the device computes no more; "" if it does. After some errors a GPU's process is lost for good."""
        if self._engine.device.type != "cuda":
            return ""
        try:
            working = float(torch.ones(64, device=self._engine.device).sum()) == 64.0
        except (RuntimeError, AssertionError) as error:
            return f"{self._engine.device} is broken: {str(error).splitlines()[0]}"
        return "" if working else f"{self._engine.device} computes wrong sums"
