"""A worker's numerical core without numerics: made-up results at once, and failures where a test asks for them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from archive_samples import displace_result, dynamics_result, relax_result

from driver.archive.records import TaskFailure, TaskKey, TaskResult
from driver.batch_size import Memory
from driver.errors import LatdynError, TaskError
from driver.models import ModelFile
from driver.tasks import TaskInput

RESULTS = {
    "relax": lambda key: relax_result(key.material, key.model),
    "displace": lambda key: displace_result(key.material, key.model),
    "dynamics": lambda key: dynamics_result(key.material, key.model, key.segment),
}


def failure(key: TaskKey, error: Exception) -> TaskFailure:
    """As the stages make one."""
    return TaskFailure(key, type(error).__name__, str(error), f"Traceback: {error}", isinstance(error, LatdynError))


class ToyMemoryError(RuntimeError):
    """Stands for a device that is out of memory."""


@dataclass
class ToyRunner:
    """Runs stages by making results up.

    `fail`: tasks that fail by themselves, with the error; `poison`: tasks that bring their whole lease down; `atoms`:
    more than so many tasks in a lease run out of memory; `once`: an error in `fail` or `poison` strikes once only;
    `seconds`: how long a task takes; `signals`: how many tasks are begun before this process gets a signal, and which.
    """

    fail: dict[TaskKey, Exception] = field(default_factory=dict)
    poison: dict[TaskKey, Exception] = field(default_factory=dict)
    most_tasks: int = 10**9
    once: bool = False
    seconds: float = 0.0
    bad_model: str = ""
    signals: tuple[int, signal.Signals] | None = None
    measured: Memory | None = None
    begun: int = 0
    leases: list[tuple[TaskKey, ...]] = field(default_factory=list)

    def check(self, models: Iterable[ModelFile], stop: Callable[[], bool] = lambda: False) -> Iterator[str]:
        """Refuse to work if the test says so."""
        if self.bad_model:
            raise TaskError(self.bad_model)
        yield "models are being made ready"

    def notices(self) -> list[str]:
        """Say the same after every lease."""
        return ["made up"]

    def run(
        self, stage: str, inputs: Sequence[TaskInput], model: ModelFile, stop: Callable[[], bool]
    ) -> Iterator[TaskResult | TaskFailure]:
        """Yield made-up results."""
        keys = tuple(task.key for task in inputs)
        self.leases.append(keys)
        if len(keys) > self.most_tasks:
            raise ToyMemoryError("out of memory")
        for key in keys:
            if key in self.poison:
                raise self.poison.pop(key) if self.once else self.poison[key]
        for key in keys:
            self.begun += 1
            if self.signals is not None and self.begun == self.signals[0]:
                os.kill(os.getpid(), self.signals[1])
            deadline = time.monotonic() + self.seconds
            while time.monotonic() < deadline:
                if stop():
                    return
                time.sleep(0.001)
            if key in self.fail:
                yield failure(key, self.fail.pop(key) if self.once else self.fail[key])
            else:
                yield RESULTS[stage](key)

    def memory(self) -> Memory | None:
        """Made up by the test."""
        return self.measured

    def release_memory(self, error: Exception) -> bool:
        """Whether the toy has run out of memory."""
        return isinstance(error, ToyMemoryError)

    def defect(self) -> str:
        """The toy device never breaks."""
        return ""
