"""Whose fault is a failure, the task's or the device's? Pure bookkeeping.

A task that fails on two workers is at fault itself. A worker on which several tasks have failed in a row, which then
succeed elsewhere, computes on a device that is broken, or on a node that is. Until that is known it gets no more work,
so that it cannot fail all there is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from driver.archive.records import TaskKey

SUSPICIOUS = 3
"""Tasks in a row that fail on one worker, before it is held back; so many that succeed elsewhere convict it."""


class Blame:
    """Failures that are not settled yet, worker by worker."""

    def __init__(self) -> None:
        self._failed: dict[int, set[TaskKey]] = defaultdict(set)
        self._convicting: dict[int, int] = defaultdict(int)
        self._accused_of: dict[TaskKey, set[int]] = defaultdict(set)
        self._at_fault: set[TaskKey] = set()

    def failed(self, worker: int, key: TaskKey) -> None:
        """A task has failed on a worker, and may be tried again."""
        if key in self._at_fault:
            return
        others = self._accused_of[key] - {worker}
        if others:  # here too: the task's fault
            self._at_fault.add(key)
            for other in (*others, worker):
                self._settle(other, key)
        else:
            self._failed[worker].add(key)
            self._accused_of[key].add(worker)

    def succeeded(self, worker: int, key: TaskKey) -> None:
        """A task has succeeded on a worker."""
        self._convicting[worker] = 0
        for own in tuple(self._failed.pop(worker, ())):
            self._settle(worker, own)
        for other in tuple(self._accused_of.get(key, ())):
            self._convicting[other] += 1
            self._settle(other, key)

    def forget(self, worker: int) -> None:
        """A worker is gone."""
        for key in tuple(self._failed.pop(worker, ())):
            self._settle(worker, key)
        self._convicting.pop(worker, None)

    def suspects(self, workers: Iterable[int], *, more_to_come: bool = False) -> set[int]:
        """Workers that should get nothing more until their failures are settled; none if all of them should not.

        Parameters
        ----------
        workers : iterable of int
            Those that are there.
        more_to_come : bool
            Others will be, so that all of those that are there may be held back.
        """
        workers = tuple(workers)
        found = {w for w in workers if len(self._failed.get(w, ())) + self._convicting.get(w, 0) >= SUSPICIOUS}
        return found if more_to_come or len(found) < len(workers) else set()

    def convicted(self, worker: int) -> int:
        """How many tasks failed on a worker and then succeeded on others, if that many make it guilty; else 0."""
        count = self._convicting.get(worker, 0)
        return count if count >= SUSPICIOUS else 0

    def _settle(self, worker: int, key: TaskKey) -> None:
        self._failed.get(worker, set()).discard(key)
        self._accused_of[key].discard(worker)
        if not self._accused_of[key]:
            del self._accused_of[key]
