"""What a task starts from."""

from __future__ import annotations

from dataclasses import dataclass

from driver.archive.h5md import State
from driver.archive.records import Structure, TaskKey


@dataclass(frozen=True)
class TaskInput:
    """One task with the data it starts from.

    Attributes
    ----------
    key : TaskKey
    structure : Structure
        For relax the material as given, for displace and dynamics the relaxed unit cell.
    states : tuple of State or None
        Dynamics: where the segment before ended, one per replica; None for segment 0 and the other stages.
    """

    key: TaskKey
    structure: Structure
    states: tuple[State, ...] | None = None
