"""What there is to do: materials x models x stages -> tasks, and what each of them starts from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from driver.archive.h5md import last_state, replicas
from driver.archive.reader import ArchiveView
from driver.archive.records import MaterialRecord, TaskKey
from driver.batch_size import BatchSize, size_of
from driver.errors import UsageError
from driver.settings import Settings
from driver.structures.supercells import supercell_matrix
from driver.tasks import TaskInput, TaskSpec

if TYPE_CHECKING:
    from driver.archive.records import Structure

_RELAX_EVALUATIONS = 100
_DISPLACED_CELLS = 6
_FLOAT64_COST = 2.0
"""Rough work per task, for the order in which tasks are handed out and for estimates before anything is measured:
evaluations of a relaxation, displaced cells of a crystal as symmetric as a perovskite, float64 against float32."""


def build_tasks(materials: Sequence[MaterialRecord], models: Iterable[str], settings: Settings) -> list[TaskSpec]:
    """List every task of a campaign.

    Parameters
    ----------
    materials : sequence of MaterialRecord
    models : iterable of str
        Keys.
    settings : Settings

    Returns
    -------
    list of TaskSpec
        In the order materials, models, stages; done ones included.

    Raises
    ------
    UsageError
        If a stage is asked for without the one that it builds on.
    """
    stages = settings.stages
    for stage in ("displace", "dynamics"):
        if stage in stages and "relax" not in stages:
            raise UsageError(f"stages: {stage} needs relax; to keep the geometry as given set relax.mode=none")
    tasks: list[TaskSpec] = []
    keys = tuple(models)
    for material in materials:
        cell = size_of(material.structure)
        supercell = cell * cells_in_supercell(material.structure, settings)
        for model in keys:
            tasks += _tasks_of(material.key, model, cell, supercell, settings)
    return tasks


def _tasks_of(material: str, model: str, cell: BatchSize, supercell: BatchSize, settings: Settings) -> list[TaskSpec]:
    relax = TaskKey(material, model, "relax")
    tasks: list[TaskSpec] = []
    if "relax" in settings.stages:
        evaluations = 1 if settings.relax.mode == "none" else _RELAX_EVALUATIONS
        tasks.append(TaskSpec(relax, cell, _FLOAT64_COST * cell.atoms * evaluations))
    if "displace" in settings.stages:
        cells = _DISPLACED_CELLS * len(settings.displace.distances_A)
        key = TaskKey(material, model, "displace")
        tasks.append(TaskSpec(key, supercell * cells, _FLOAT64_COST * supercell.atoms * cells, (relax,)))
    if "dynamics" in settings.stages:
        size = supercell * settings.dynamics.replicas
        before = relax
        for segment in range(settings.dynamics.segments):
            key = TaskKey(material, model, "dynamics", segment)
            tasks.append(TaskSpec(key, size, size.atoms * settings.dynamics.segment_steps, (before,)))
            before = key
    return tasks


def cells_in_supercell(structure: Structure, settings: Settings) -> int:
    """Number of the material's cells in its supercell (estimated from the starting structure)."""
    return round(abs(np.linalg.det(supercell_matrix(structure, settings.supercell))))


def inputs_of(key: TaskKey, view: ArchiveView) -> TaskInput:
    """Read from the archive what a task starts from.

    Parameters
    ----------
    key : TaskKey
        A task whose requirements are committed.
    view : ArchiveView

    Returns
    -------
    TaskInput
        With the structure as given (relax) or relaxed, and the states at the end of the segment before.
    """
    if key.stage == "relax":
        return TaskInput(key, view.structure(key.material), None)
    structure = view.relaxed(key.material, key.model)
    if key.stage != "dynamics" or key.segment == 0:
        return TaskInput(key, structure, None)
    count = replicas(view, key.material, key.model)
    before = key.segment - 1
    states = tuple(last_state(view, key.material, key.model, replica, before) for replica in range(count))
    return TaskInput(key, structure, states)
