"""What can be found wrong with a campaign before anything runs: the same for `run` and for `plan`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from ase.data import atomic_numbers, chemical_symbols

from driver.archive.identity import Difference, different_materials, different_models, refusal
from driver.archive.reader import open_archive
from driver.archive.records import ArchiveError, MaterialRecord
from driver.archive.schema import safe_key
from driver.campaign import Campaign, cells_in_supercell
from driver.errors import UsageError
from driver.estimates import archive_bytes, size_text
from driver.model_checks import ModelFacts, check_models
from driver.models import prepared_folder
from driver.physics_settings import physics_differences, physics_of
from driver.settings import Settings

LARGE_ARCHIVE_BYTES = 1e11
LARGE_SUPERCELL_ATOMS = 5_000
LARGE_TASK_ATOMS = 50_000
MAX_SUPERCELL_ATOMS = 1_000_000
"""No device holds more."""

USUAL_DISTANCE_A = (0.002, 0.1)
"""Displacements: below, noise of the forces is seen; above, anharmonicity."""
USUAL_TEMPERATURE_K = (1.0, 3000.0)
USUAL_TIMESTEP_FS = 5.0
HYDROGEN_TIMESTEP_FS = 1.0
USUAL_FMAX_EV_A = 0.05
USUAL_VOLUME_A3 = (3.0, 150.0)
"""Per atom."""

_LINES = 20
"""Materials that a refusal names, each on a line."""

_SHOWN = 3
"""Materials that a warning names."""


def check(campaign: Campaign, stop: Callable[[], bool] | None = None) -> tuple[str, ...]:
    """Refuse what a run could not do, and return what is likely to be a mistake, one line each.

    Parameters
    ----------
    campaign : Campaign
    stop : callable, optional
        Once it is true, models that still have to be loaded are not.

    Raises
    ------
    UsageError
        Naming the setting, material or model at fault, and the remedy; or what differs from the campaign's archive.
    ArchiveError
        If there is an archive that cannot be read, or a key that none can have.
    InterruptedRunError
        `stop` has become true.
    """
    settings = campaign.configuration.settings
    check_folder(settings)
    check_keys(campaign)
    check_supercells(campaign)
    check_archive(campaign)
    facts = check_models(campaign.models.values(), prepared_folder(settings.engine.cache), stop)
    lacking = check_elements(campaign, facts)
    return (*lacking, *_odd_settings(settings), *_odd_materials(campaign), *_odd_sizes(campaign))


def check_folder(settings: Settings) -> None:
    """Refuse a folder that cannot be made."""
    folder = settings.folder.absolute()
    existing = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not existing.is_dir():
        raise UsageError(f"cannot make {settings.folder}: {existing} is not a folder; set runs= or name= to another")
    if os.statvfs(existing).f_flag & os.ST_RDONLY:
        raise UsageError(f"cannot write in {settings.folder}: read-only file system; set runs= to another folder")
    if existing != folder and not os.access(existing, os.W_OK | os.X_OK):
        raise UsageError(f"cannot make {settings.folder}: you may not write in {existing}; set runs= to another folder")
    if settings.archive.is_dir():
        raise UsageError(f"{settings.archive} is a folder; set runs= or name= to another")


def check_keys(campaign: Campaign) -> None:
    """Refuse keys that cannot stand in an archive."""
    for key in campaign.models:
        safe_key(key, "model")
    for record in campaign.materials.records:
        try:
            safe_key(record.key, "material")
        except ArchiveError as error:
            raise UsageError(f"{record.source}: {error} (rename the file, or set materials.key_field)") from error


def check_elements(campaign: Campaign, facts: Mapping[str, ModelFacts]) -> list[str]:
    """Refuse materials with elements that a model lacks, or return a line per model where materials.on_error=skip."""
    lacking = {key: _lacking(campaign, facts[key].atomic_numbers) for key in campaign.models}
    refused = [
        f"material {name}: model {model} does not know {e}" for model, m in lacking.items() for name, e in m.items()
    ]
    if refused and campaign.configuration.materials.on_error == "refuse":
        remedy = "leave such materials out with materials.exclude, or go on without with materials.on_error=skip"
        more = [f"and {len(refused) - _LINES} more"] if len(refused) > _LINES else []
        raise UsageError("\n  ".join([f"elements that a model lacks ({remedy}):", *refused[:_LINES], *more]))
    return [
        f"model {model} does not know elements of {_listed([f'{name} ({e})' for name, e in materials.items()])}: "
        "tasks of such materials will be given up"
        for model, materials in lacking.items()
        if materials
    ]


def _lacking(campaign: Campaign, known: tuple[int, ...]) -> dict[str, str]:
    """Return the materials with elements that are not among those known -> their symbols."""
    absent = {
        record.key: sorted(set(record.structure.numbers.tolist()) - set(known)) for record in campaign.materials.records
    }
    return {
        key: ", ".join(chemical_symbols[number] for number in numbers) for key, numbers in absent.items() if numbers
    }


def check_supercells(campaign: Campaign) -> None:
    """Refuse supercells that no device holds."""
    for record, atoms in _supercells(campaign):
        if atoms > MAX_SUPERCELL_ATOMS:
            raise UsageError(
                f"material {record.key}: its supercell would have {atoms:.3g} atoms; "
                "lower supercell.min_length_A or supercell.matrix"
            )


def check_archive(campaign: Campaign) -> None:
    """Refuse inputs that differ from those which the campaign's archive was made with."""
    if not campaign.archive.exists():
        return
    with open_archive(campaign.archive) as view:
        table = view.table("materials")
        structures = dict(zip(table["key"], table["checksum"], strict=True))
        used = set(view.table("tasks")["model"])  # a model that nothing was computed with may be replaced
        models = {key: record for key, record in view.models().items() if key in used}
        differences: list[Difference | str] = [
            *physics_differences(view.header.physics, physics_of(campaign.configuration.settings)),
            *different_models(models, campaign.model_records),
            *different_materials(structures, campaign.materials.records, view.structure),
        ]
    if differences:
        raise UsageError(refusal(campaign.archive, differences))


def _supercells(campaign: Campaign) -> Iterator[tuple[MaterialRecord, float]]:
    settings = campaign.configuration.settings
    if {"displace", "dynamics"} & set(settings.stages):
        for record in campaign.materials.records:
            yield record, len(record.structure) * cells_in_supercell(record.structure, settings)


def _odd_settings(settings: Settings) -> Iterator[str]:
    """Yield what is outside of what is usual, with what is usual."""
    if "displace" in settings.stages:
        low, high = USUAL_DISTANCE_A
        for distance in settings.displace.distances_A:
            if not low <= distance <= high:
                yield f"displace.distances_A = {distance:g}: harmonic forces are usually taken at {low:g} to {high:g} A"
    if settings.relax.mode != "none" and settings.relax.fmax_eV_A > USUAL_FMAX_EV_A:
        yield (
            f"relax.fmax_eV_A = {settings.relax.fmax_eV_A:g}: phonons of a crystal that is not relaxed below "
            f"{USUAL_FMAX_EV_A:g} eV/A mean little"
        )
    if "dynamics" not in settings.stages:
        return
    dynamics = settings.dynamics
    low, high = USUAL_TEMPERATURE_K
    if not low <= dynamics.temperature_K <= high:
        yield f"dynamics.temperature_K = {dynamics.temperature_K:g}: crystals are usually run at {low:g} to {high:g} K"
    if dynamics.timestep_fs > USUAL_TIMESTEP_FS:
        yield f"dynamics.timestep_fs = {dynamics.timestep_fs:g}: above {USUAL_TIMESTEP_FS:g} fs few crystals are stable"


def _odd_materials(campaign: Campaign) -> Iterator[str]:
    """Yield what looks like a wrong unit of length, and hydrogen with a long time step."""
    records, dynamics = campaign.materials.records, campaign.configuration.settings.dynamics
    low, high = USUAL_VOLUME_A3
    odd = [
        f"{record.key} ({volume:.3g})"
        for record in records
        if not low <= (volume := record.structure.volume / len(record.structure)) <= high
    ]
    if odd:
        yield f"cubic angstrom per atom outside of {low:g} to {high:g} (another unit of length?): {_listed(odd)}"
    light = [record.key for record in records if atomic_numbers["H"] in record.structure.numbers]
    if light and dynamics.timestep_fs > HYDROGEN_TIMESTEP_FS and "dynamics" in campaign.configuration.settings.stages:
        yield (
            f"dynamics.timestep_fs = {dynamics.timestep_fs:g}: hydrogen wants {HYDROGEN_TIMESTEP_FS:g} fs or less "
            f"({_listed(light)})"
        )


def _odd_sizes(campaign: Campaign) -> Iterator[str]:
    """Yield large supercells, large tasks and a large archive."""
    settings = campaign.configuration.settings
    large = [f"{record.key} ({atoms:.0f})" for record, atoms in _supercells(campaign) if atoms > LARGE_SUPERCELL_ATOMS]
    if large:
        yield f"supercells of more than {LARGE_SUPERCELL_ATOMS} atoms: {_listed(large)}"
    heavy = {s.key.material: s.size.atoms for s in campaign.tasks if s.key.stage == "dynamics" and s.key.segment == 0}
    heavy = {key: atoms for key, atoms in heavy.items() if atoms > LARGE_TASK_ATOMS}
    if heavy:
        named = [f"{key} ({atoms:.3g})" for key, atoms in heavy.items()]
        yield f"more than {LARGE_TASK_ATOMS} atoms in one task, all replicas together: {_listed(named)}"
    size = sum(archive_bytes(spec, settings.dynamics) for spec in campaign.tasks)
    there = campaign.archive.stat().st_size if campaign.archive.exists() else 0
    free = _free_bytes(settings.folder)
    remedy = "raise dynamics.frame_interval_fs, or take fewer materials, replicas or picoseconds"
    if size - there > free:
        yield f"the archive will grow to about {size_text(size)}, and {size_text(free)} are free; {remedy}"
    elif size > LARGE_ARCHIVE_BYTES:
        yield f"the archive will grow to about {size_text(size)}; {remedy}"


def _free_bytes(folder: Path) -> float:
    folder = folder.absolute()
    existing = next(path for path in (folder, *folder.parents) if path.is_dir())
    try:
        return float(shutil.disk_usage(existing).free)
    except OSError:
        return float("inf")


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
