"""Tasks that could run now, by model and stage, the longest chains first."""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Mapping

from driver.archive.records import TaskKey
from driver.batch_size import NOTHING, BatchSize
from driver.tasks import TaskSpec


class ReadyTasks:
    """A heap for each model and stage; adding and taking cost O(log n).

    Parameters
    ----------
    specs : mapping of TaskKey to TaskSpec
        All tasks; among equally long chains those that come first in it go first.
    chain_costs : mapping of TaskKey to float
        Cost of a task and of all that can only follow it.
    """

    def __init__(self, specs: Mapping[TaskKey, TaskSpec], chain_costs: Mapping[TaskKey, float]) -> None:
        self._specs = specs
        self._chain_costs = chain_costs
        self._order = {key: index for index, key in enumerate(specs)}
        self._heaps: dict[str, dict[str, list[tuple[float, int, TaskKey]]]] = defaultdict(lambda: defaultdict(list))
        self._atoms: dict[tuple[str, str], float] = defaultdict(float)
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def push(self, key: TaskKey) -> None:
        """Add a task."""
        heapq.heappush(self._heaps[key.model][key.stage], (-self._chain_costs[key], self._order[key], key))
        self._atoms[key.model, key.stage] += self._specs[key].size.atoms
        self._count += 1

    def choose(self, model: str) -> tuple[str, str] | None:
        """Return the model and stage to serve next: `model` while it has tasks, else that of the longest chain."""
        if not self._count:
            return None
        first = {m: min((heap[0], stage) for stage, heap in stages.items() if heap) for m, stages in self._filled()}
        chosen = model if model in first else min(first, key=first.__getitem__)
        return chosen, first[chosen][1]

    def _filled(self) -> list[tuple[str, dict[str, list[tuple[float, int, TaskKey]]]]]:
        return [(model, stages) for model, stages in self._heaps.items() if any(stages.values())]

    def take(
        self,
        model: str,
        stage: str,
        capacity: BatchSize,
        shares: int,
        left_s: float,
        expected_s: Callable[[TaskKey], float],
    ) -> tuple[TaskKey, ...]:
        """Take the longest tasks up to a capacity, and no more than a share of what is ready.

        A task that would not be done in time is not taken, nor any after it: time is short for all of them.

        Parameters
        ----------
        model, stage : str
        capacity : BatchSize
        shares : int
            Into how many leases what is ready should be divided.
        left_s : float
            Time until the run must end.
        expected_s : callable
            How long a task should take.
        """
        heap = self._heaps[model][stage]
        share = self._atoms[model, stage] / shares
        tasks: list[TaskKey] = []
        size = NOTHING
        while heap:
            key = heap[0][2]
            larger = size + self._specs[key].size
            if tasks and (larger.atoms > share or not larger.within(capacity)):
                break
            left_s -= expected_s(key)
            if left_s < 0:
                break
            heapq.heappop(heap)
            size = larger
            tasks.append(key)
        self._atoms[model, stage] -= size.atoms
        self._count -= len(tasks)
        return tuple(tasks)
