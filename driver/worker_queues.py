"""Workers with a free place, in the order in which they are served; the number of workers costs no time."""

from __future__ import annotations


class WorkerQueues:
    """One queue for each number of leases that a worker may hold besides the next, and one of those set aside.

    Parameters
    ----------
    places : int
        Leases that a worker holds at most.
    """

    def __init__(self, places: int) -> None:
        # Dicts keep an order, and give up any member at once.
        self._queues: list[dict[int, None]] = [{} for _ in range(places)]
        self._parked: dict[int, int] = {}

    def put(self, worker: int, leases: int) -> None:
        """Put a worker that holds so many leases at the end of its queue; of none if it has no place left."""
        self.remove(worker)
        if leases < len(self._queues):
            self._queues[leases][worker] = None

    def remove(self, worker: int) -> None:
        """Take a worker out."""
        self._parked.pop(worker, None)
        for queue in self._queues:
            queue.pop(worker, None)

    def first(self, leases: int) -> int | None:
        """The worker that is next among those that hold so many leases."""
        return next(iter(self._queues[leases]), None)

    def park(self, worker: int, leases: int) -> None:
        """Set a worker aside to which nothing of what is ready could be given, until something changes."""
        self.remove(worker)
        self._parked[worker] = leases

    def unpark_one(self) -> None:
        """Put one of those set aside back in its queue, as there is something new; which one is no matter."""
        if self._parked:
            self.put(*next(iter(self._parked.items())))

    def unpark_all(self) -> None:
        """Put all of those set aside back in their queues."""
        for worker, leases in tuple(self._parked.items()):
            self.put(worker, leases)
