"""What a merge reads of each archive's tables, and what identifies the merged one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy.typing as npt

from driver.archive.identity import different_models, different_settings
from driver.archive.reader import ArchiveView, intact_rows, material_record
from driver.archive.records import (
    STAGES,
    ArchiveError,
    Header,
    MaterialRecord,
    ModelRecord,
    RefusedMaterial,
    Structure,
    TaskKey,
)
from driver.archive.schema import ROW_CHECKSUM, TABLES, structure_checksum


class MergeSource:
    """The tables of one archive, in memory.

    Attributes
    ----------
    view : ArchiveView
    path : Path
    tasks : structured array
        `/tables/tasks` as stored.
    attempts : dict
        Task -> its intact rows in `tasks`.
    states : dict
        Task -> `TaskState`.
    checksums : dict
        Done task -> checksum of what it has stored.
    scalars : dict
        Done task -> its row of the stage's table, where that is intact.
    failures : dict
        Row of `tasks` -> row of `/tables/failures`.
    """

    def __init__(self, view: ArchiveView) -> None:
        self.view = view
        self.path: Path = view.path
        self.states = view.task_states()
        self.tasks = view.rows("tasks")
        self.attempts = self._attempts()
        done = {key: rows[-1] for key, rows in self.attempts.items() if self.states[key].status == "done"}
        self.checksums = {key: bytes(self.tasks["checksum"][row]).decode("ascii") for key, row in done.items()}
        self.scalars = self._scalars(done)
        failures = view.rows("failures")
        self.failures = {int(failures["task"][row]): failures[row] for row in intact_rows(failures)}

    def attempt_bytes(self, row: int) -> bytes:
        """Return what tells an attempt from others at the same task, the same in every archive that has it."""
        attempt = self.tasks[row : row + 1].copy()
        for name in ("material", "model", ROW_CHECKSUM):
            attempt[name] = 0
        return attempt.tobytes()

    def _attempts(self) -> dict[TaskKey, list[int]]:
        materials, models = self.view.material_keys(), self.view.model_keys()
        attempts: dict[TaskKey, list[int]] = {}
        intact = intact_rows(self.tasks)
        columns = (self.tasks[name][intact].tolist() for name in ("material", "model", "stage", "segment"))
        for row, material, model, stage, segment in zip(intact.tolist(), *columns, strict=True):
            key = TaskKey(materials[material], models[model], STAGES[stage], segment)
            attempts.setdefault(key, []).append(row)
        return attempts

    def _scalars(self, done: dict[TaskKey, int]) -> dict[TaskKey, npt.NDArray[Any]]:
        rows: dict[str, dict[int, npt.NDArray[Any]]] = {}
        for stage in (name for name in STAGES if name in TABLES):
            table = self.view.rows(stage)
            rows[stage] = {int(table["task"][row]): table[row : row + 1] for row in intact_rows(table)}
        return {key: rows[key.stage][task] for key, task in done.items() if task in rows[key.stage]}


def merged_header(sources: Sequence[MergeSource]) -> Header:
    """Return the identity of the merged archive: that of the first one, and all software versions.

    Raises
    ------
    ArchiveError
        If the archives were made with different settings or seeds; the message names them.
    """
    first, headers = sources[0].view.header, [source.view.header for source in sources]
    for source, header in zip(sources[1:], headers[1:], strict=True):
        differences = different_settings(
            {**first.physics, "seed": str(first.seed)}, {**header.physics, "seed": str(header.seed)}
        )
        different = [f"{item.what} is {item.stored}, and {item.now}" for item in differences]
        if different:
            raise ArchiveError(
                f"{sources[0].path} and {source.path} are of different campaigns: {'; '.join(different)}."
                " Only archives made with the same settings can be merged"
            )
    versions: dict[str, dict[str, None]] = {}
    for header in headers:
        for name, version in header.versions.items():
            versions.setdefault(name, {}).update(dict.fromkeys(version.split(", ")))
    return replace(
        first,
        versions={name: ", ".join(several) for name, several in versions.items()},
        created=min(header.created for header in headers),
    )


def merged_materials(sources: Sequence[MergeSource]) -> list[MaterialRecord]:
    """Return the materials of all archives.

    Raises
    ------
    ArchiveError
        If a material has different structures, or one that is damaged wherever it is.
    """
    tables = [source.view.table("materials") for source in sources]
    checksums: dict[str, tuple[str, MergeSource]] = {}
    records: dict[str, MaterialRecord] = {}
    for source, table in zip(sources, tables, strict=True):
        for row, key in enumerate(table["key"]):
            checksum = str(table["checksum"][row])
            known, where = checksums.setdefault(key, (checksum, source))
            if known != checksum:
                raise ArchiveError(f"material {key} has one structure in {where.path} and another in {source.path}")
            structure = None if key in records else _intact_structure(source.view, key, checksum)
            if structure is not None:
                records[key] = material_record(table, row, structure)
    for key, (_, source) in checksums.items():
        if key not in records:
            raise ArchiveError(f"the structure of {key} in {source.path} is damaged; `verify --drop`, run, then merge")
    return [records[key] for key in checksums]


def merged_models(sources: Sequence[MergeSource]) -> list[ModelRecord]:
    """Return the models of all archives.

    Raises
    ------
    ArchiveError
        If a model has different files or heads.
    """
    models: dict[str, tuple[ModelRecord, MergeSource]] = {}
    for source in sources:
        for key, record in source.view.models().items():
            known, where = models.setdefault(key, (record, source))
            for item in different_models({key: known}, [record]):
                raise ArchiveError(f"{item.what} is {item.stored} in {where.path} and {item.now} in {source.path}")
    return [record for record, _ in models.values()]


def merged_refused(sources: Sequence[MergeSource]) -> list[RefusedMaterial]:
    """Return what was refused everywhere where it was asked for."""
    taken = {key for source in sources for key in source.view.material_keys()}
    refused = {material.key: material for source in reversed(sources) for material in source.view.refused()}
    return [material for key, material in refused.items() if key not in taken]


def _intact_structure(view: ArchiveView, key: str, checksum: str) -> Structure | None:
    try:
        structure = view.structure(key)
    except ArchiveError:
        return None
    return structure if structure_checksum(structure) == checksum else None
