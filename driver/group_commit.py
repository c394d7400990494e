"""When to commit: results share commits, and none waits for long. Pure; the clock is an argument."""

from __future__ import annotations

from driver.archive.records import Attempt

PAUSE = 4.0
"""Between two commits, in durations of a small one, unless a result has waited too long or a worker has no work."""

FIRST_COST_S, GROWTH = 0.01, 1.1
"""What a commit, however small, is taken to cost at first, and how fast that may grow."""


class GroupCommit:
    """Attempts that wait for the next commit.

    Parameters
    ----------
    longest_wait_s : float
        No attempt waits longer.

    Attributes
    ----------
    waiting : list of Attempt
    """

    def __init__(self, longest_wait_s: float) -> None:
        self._longest_wait_s = longest_wait_s
        self.waiting: list[Attempt] = []
        self._since_s = self._ended_s = 0.0
        self._cost_s = FIRST_COST_S

    def add(self, attempt: Attempt, now_s: float) -> None:
        """An attempt is to be committed."""
        if not self.waiting:
            self._since_s = now_s
        self.waiting.append(attempt)

    def overdue(self, now_s: float) -> bool:
        """Whether an attempt has waited for as long as any may."""
        return bool(self.waiting) and now_s - self._since_s >= self._longest_wait_s

    def rested(self, now_s: float) -> bool:
        """Whether the last commit is long enough ago that commits take a fifth of the time at most."""
        return now_s - self._ended_s >= PAUSE * self._cost_s

    def wait_s(self, now_s: float) -> float:
        """How long to wait for messages before it is worth looking at the clock again."""
        longest = self._longest_wait_s / 2
        return min(longest, max(0.0, self._ended_s + PAUSE * self._cost_s - now_s)) if self.waiting else longest

    def committed(self, began_s: float, ended_s: float) -> None:
        """All that waited has been committed; large commits say little of what a small one costs."""
        self.waiting = []
        self._ended_s = ended_s
        self._cost_s = min(GROWTH * self._cost_s, ended_s - began_s)
