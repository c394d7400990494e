"""Is a worker that reports nothing still computing? Pure bookkeeping; the clock is an argument.

Whether its process lives at all is another question, which its heartbeats answer (driver.transport). Here it is about a
worker that lives and gets nowhere: a device that hangs, a deadlock.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

SLACK = 10.0
"""How many times longer than its own speed explains a worker may be silent: lists are rebuilt, nodes are shared."""

FIRST = 6.0
"""How many times longer than without explanation while nobody has done any work of the kind."""


@dataclass(frozen=True)
class Silence:
    """A worker has been silent for longer than it was given."""

    worker: int
    seconds: float
    allowed_s: float

    def __str__(self) -> str:
        return f"no progress for {self.seconds:.0f} s, {self.allowed_s:.0f} s were allowed"


class _Rate:
    """Cost per second, from sums that grow."""

    def __init__(self) -> None:
        self.cost = self.seconds = 0.0

    def add(self, cost: float, seconds: float) -> None:
        self.cost += cost
        self.seconds += seconds

    @property
    def value(self) -> float | None:
        return self.cost / self.seconds if self.seconds > 0 else None


class Liveness:
    """Measures what each worker does in a second, stage by stage, and from that how long it may be silent.

    All methods but `silent` take the same time however many workers there are.

    Parameters
    ----------
    patience_s : float
        Silence that needs no explanation (loading a model, a slow file system).
    """

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._heard_s: dict[int, float] = {}
        self._rates: dict[tuple[int, str], _Rate] = {}
        self._pooled: dict[str, _Rate] = {}

    def heard(self, worker: int, now_s: float) -> None:
        """A worker has got on with its work, or has been given its first work after a pause."""
        self._heard_s[worker] = now_s

    def measured(self, worker: int, stage: str, cost: float, seconds: float) -> None:
        """A worker has done tasks of a cost in a time."""
        self._rates.setdefault((worker, stage), _Rate()).add(cost, seconds)
        self._pooled.setdefault(stage, _Rate()).add(cost, seconds)

    def forget(self, worker: int) -> None:
        """A worker is gone."""
        self._heard_s.pop(worker, None)

    def speed(self, worker: int, stage: str) -> float | None:
        """Cost per second of a worker; before it has done anything, the mean of all; None if nobody has."""
        own = self._rates.get((worker, stage))
        if own is not None and own.value:
            return own.value
        pooled = self._pooled.get(stage)
        return pooled.value if pooled else None

    def expected_s(self, worker: int, stage: str, cost: float) -> float:
        """Seconds that work of some cost should take; 0 while nobody has done any."""
        speed = self.speed(worker, stage)
        return cost / speed if speed else 0.0

    def allowed_s(self, worker: int, stage: str, cost: float) -> float:
        """Seconds of silence that work of some cost explains."""
        if self.speed(worker, stage) is None:
            return FIRST * self._patience_s
        return self._patience_s + SLACK * self.expected_s(worker, stage, cost)

    def silent(self, running: Mapping[int, tuple[str, float]], now_s: float) -> list[Silence]:
        """Workers whose silence nothing explains.

        Parameters
        ----------
        running : mapping
            Worker -> stage and cost of what it is running; workers without work are left out.
        now_s : float
        """
        found = []
        for worker, (stage, cost) in running.items():
            allowed = self.allowed_s(worker, stage, cost)
            silence = now_s - self._heard_s.get(worker, now_s)
            if silence > allowed:
                found.append(Silence(worker, silence, allowed))
        return found
