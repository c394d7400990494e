"""What there is to do: materials x models x stages -> tasks, and what each of them starts from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from driver.archive.h5md import last_state, replicas
from driver.archive.reader import ArchiveView
from driver.archive.records import MaterialRecord, ModelRecord, TaskKey
from driver.batch_size import BatchSize, size_of
from driver.config import Configuration, compose
from driver.errors import UsageError
from driver.models import ModelFile, cache_folder, model_record, resolve
from driver.settings import Settings
from driver.structures.materials import Materials, load_materials
from driver.structures.supercells import supercell_matrix
from driver.tasks import TaskInput, TaskSpec

if TYPE_CHECKING:
    from driver.archive.records import Structure

_RELAX_EVALUATIONS = 100
_DISPLACED_CELLS = 6
_FLOAT64_COST = 2.0
"""Rough work per task, for the order in which tasks are handed out and for estimates before anything is measured:
evaluations of a relaxation, displaced cells of a crystal as symmetric as a perovskite, float64 against float32."""


MAX_TASKS = 20_000_000
"""More of them do not fit into the memory of rank 0."""


@dataclass(frozen=True)
class Campaign:
    """A campaign as configured: its materials, its models and all of its tasks, done ones included."""

    configuration: Configuration
    materials: Materials
    models: Mapping[str, ModelFile]
    tasks: Sequence[TaskSpec]

    @property
    def archive(self) -> Path:
        """The campaign's archive."""
        return self.configuration.settings.archive

    @property
    def model_records(self) -> tuple[ModelRecord, ...]:
        """The models as the archive keeps them."""
        return tuple(model_record(spec, self.models[spec.key]) for spec in self.configuration.models)


def compose_campaign(overrides: Sequence[str], config_dir: Path | None = None) -> Campaign:
    """Compose a campaign, find its materials and model files, and list its tasks; opens no archive.

    Parameters
    ----------
    overrides : sequence of str
        See `driver.config.compose`.
    config_dir : Path, optional
        Presets of the user's own.

    Raises
    ------
    UsageError
        For anything wrong with settings, materials or models by themselves; see `driver.checks` for the rest.
    """
    configuration = compose(overrides, config_dir)
    materials = load_materials(configuration.materials, base_dir=Path.cwd(), seed=configuration.settings.seed)
    cache = cache_folder(configuration.model_cache)
    models = {spec.key: resolve(spec, cache) for spec in configuration.models}
    tasks = build_tasks(materials.records, models, configuration.settings)
    return Campaign(configuration, materials, models, tasks)


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
        If a stage is asked for without the one that it builds on, or there are more tasks than can be handled.
    """
    stages = settings.stages
    for stage in ("displace", "dynamics"):
        if stage in stages and "relax" not in stages:
            raise UsageError(f"stages: {stage} needs relax; to keep the geometry as given set relax.mode=none")
    tasks: list[TaskSpec] = []
    keys = tuple(models)
    chain = settings.dynamics.segments if "dynamics" in stages else 0
    count = len(materials) * len(keys) * (len(set(stages) - {"dynamics"}) + chain)
    if count > MAX_TASKS:
        raise UsageError(
            f"{count} tasks are too many for one campaign: raise dynamics.segment_ps, or take fewer materials"
        )
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
