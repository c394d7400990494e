"""Tasks: what the scheduler knows of one, how they follow from each other, and what one starts from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from driver.archive.h5md import State
from driver.archive.records import Structure, TaskKey
from driver.batch_size import BatchSize


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


@dataclass(frozen=True)
class TaskSpec:
    """A task as the scheduler sees it.

    Attributes
    ----------
    key : TaskKey
    size : BatchSize
        What the task brings into a batch.
    cost : float
        Expected work, in any unit that is the same for all tasks (atoms x force evaluations).
    requires : tuple of TaskKey
        Tasks that must be done before.
    """

    key: TaskKey
    size: BatchSize
    cost: float
    requires: tuple[TaskKey, ...] = ()


@dataclass(frozen=True)
class Lease:
    """Tasks of one model and stage, handed together to one worker so that they run as one batch."""

    id: int
    worker: int
    model: str
    stage: str
    tasks: tuple[TaskKey, ...]


@dataclass(frozen=True)
class Counts:
    """How many tasks stand where; `blocked` ones wait for a quarantined task and will not run."""

    total: int
    done: int
    quarantined: int
    blocked: int

    @property
    def left(self) -> int:
        """Tasks that can still be done."""
        return self.total - self.done - self.quarantined - self.blocked


def dependents_and_costs(
    specs: Mapping[TaskKey, TaskSpec],
) -> tuple[Mapping[TaskKey, list[TaskKey]], dict[TaskKey, float]]:
    """Turn requirements around, and add up the chains.

    Returns
    -------
    dependents : mapping of TaskKey to list of TaskKey
        What directly requires a task; an empty list where nothing does.
    costs : dict of TaskKey to float
        Cost of a task plus that of the longest chain that can only follow it.

    Raises
    ------
    ValueError
        If a task requires one that is not there.
    """
    dependents: dict[TaskKey, list[TaskKey]] = defaultdict(list)
    for spec in specs.values():
        for required in spec.requires:
            if required not in specs:
                raise ValueError(f"{spec.key} requires {required}, which is not a task of this campaign")
            dependents[required].append(spec.key)
    costs: dict[TaskKey, float] = {}
    for start in specs:
        stack = [start]
        while stack:
            key = stack[-1]
            pending = [after for after in dependents[key] if after not in costs]
            if key not in costs and pending:
                stack.extend(pending)
                continue
            stack.pop()
            costs[key] = specs[key].cost + max((costs[after] for after in dependents[key]), default=0.0)
    return dependents, costs
