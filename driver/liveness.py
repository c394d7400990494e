"""Is a worker that says nothing still computing? Pure bookkeeping; the clock is an argument."""

from __future__ import annotations

from dataclasses import dataclass

SLACK = 10.0
"""How many times longer than its own speed explains a worker may be silent: lists are rebuilt, nodes are shared."""


@dataclass
class _Record:
    heard_s: float
    cost: float = 0.0
    seconds: float = 0.0


@dataclass(frozen=True)
class Silence:
    """A worker has been silent for longer than it was given."""

    worker: int
    seconds: float
    allowed_s: float

    def __str__(self) -> str:
        return f"silent for {self.seconds:.0f} s, {self.allowed_s:.0f} s were allowed"


class Liveness:
    """Measures what each worker does in a second, and from that how long it may be silent.

    Parameters
    ----------
    patience_s : float
        Silence that needs no explanation (loading a model, a slow file system).
    """

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._records: dict[int, _Record] = {}

    def heard(self, worker: int, now_s: float) -> None:
        """A worker has said something, or has been given its first work after a pause."""
        self._records.setdefault(worker, _Record(now_s)).heard_s = now_s

    def measured(self, worker: int, cost: float, seconds: float) -> None:
        """A worker has done tasks of a cost in a time."""
        record = self._records[worker]
        record.cost += cost
        record.seconds += seconds

    def forget(self, worker: int) -> None:
        """A worker is gone."""
        self._records.pop(worker, None)

    def speed(self, worker: int) -> float | None:
        """Cost per second of a worker; before it has done anything, that of the slowest other; None if nobody has."""
        record = self._records.get(worker)
        if record is not None and record.cost > 0 and record.seconds > 0:
            return record.cost / record.seconds
        return min((r.cost / r.seconds for r in self._records.values() if r.cost > 0 and r.seconds > 0), default=None)

    def allowed_s(self, worker: int, cost: float) -> float | None:
        """Seconds of silence that work of some cost explains; None while no speed is known."""
        speed = self.speed(worker)
        return None if speed is None else self._patience_s + SLACK * cost / speed

    def silent(self, running: dict[int, float], now_s: float) -> list[Silence]:
        """Workers whose silence nothing explains.

        Parameters
        ----------
        running : dict
            Worker -> cost of the lease that it is running; workers without work are left out.
        now_s : float
        """
        found = []
        for worker, cost in running.items():
            allowed = self.allowed_s(worker, cost)
            silence = now_s - self._records[worker].heard_s if worker in self._records else 0.0
            if allowed is not None and silence > allowed:
                found.append(Silence(worker, silence, allowed))
        return found
