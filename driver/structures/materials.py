"""The materials of a campaign: from element lists, formulas and structure files; filtered, selected, ordered."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields
from fnmatch import fnmatchcase
from itertools import product
from pathlib import Path

from ase.data import atomic_numbers

from driver.archive.records import MaterialRecord, RefusedMaterial, Structure
from driver.errors import UsageError
from driver.structures.convert import to_ase
from driver.structures.prototypes import Compound, canonical_formula, interpret
from driver.structures.readers import expanded, find_files, read_formulas, read_structures


@dataclass(frozen=True)
class ElementLists:
    """Elements for the sites of A2MM'X6; every combination is a candidate. All four lists, or none."""

    A: tuple[str, ...] = ()
    M: tuple[str, ...] = ()
    M_prime: tuple[str, ...] = ()
    X: tuple[str, ...] = ()


@dataclass(frozen=True)
class MaterialFilters:
    """What a compound given by elements or formula must fulfil (structure files are never filtered); None: anything.

    Attributes
    ----------
    charge_neutral : bool
        Combinations of the element lists that no tabulated oxidation states make neutral are left out; with False they
        are refused like any formula without a prototype.
    octahedral_factor_min, octahedral_factor_max, octahedral_mismatch_max : float or None
    tolerance_factor_min, tolerance_factor_max : float or None
        Of Filip & Giustino.
    bartel_tau_max, bartel_tau_six_fold_max : float or None
        4.18 is Bartel's limit; with the radius of A twelve-fold (Bartel's) or six-fold.
    """

    charge_neutral: bool = True
    octahedral_factor_min: float | None = None
    octahedral_factor_max: float | None = None
    octahedral_mismatch_max: float | None = None
    tolerance_factor_min: float | None = None
    tolerance_factor_max: float | None = None
    bartel_tau_max: float | None = None
    bartel_tau_six_fold_max: float | None = None

    def admits(self, compound: Compound) -> bool:
        """Return whether the compound's descriptors lie within all limits."""
        for limit in fields(self):
            bound = getattr(self, limit.name)
            name, _, kind = limit.name.rpartition("_")
            if kind == "min" and bound is not None and compound.descriptors[name] < bound:
                return False
            if kind == "max" and bound is not None and compound.descriptors[name] > bound:
                return False
        return True


@dataclass(frozen=True)
class MaterialsSettings:
    """Where materials come from and which of them are taken.

    Attributes
    ----------
    elements : ElementLists
    formulas : tuple of str
    formulas_file : str or None
        CSV with a column `formula`, or one formula per line.
    structures : tuple of str
        Files, folders and globs; anything that ASE reads.
    key_field : str
        Entry of a structure file that holds the key; see `read_structures`.
    filters : MaterialFilters
    include, exclude : tuple of str
        Keys or shell patterns of keys (`*Br6`); without `include`, all.
    sample : int or None
        So many materials drawn at random, the same for the same campaign seed; a larger sample contains a smaller one.
    limit : int or None
        The first so many, after `sample`.
    on_error : str
        "refuse": a material that cannot be read or built is an error before anything runs; "skip": the campaign goes on
        without it and records it as failed.
    """

    elements: ElementLists = field(default_factory=ElementLists)
    formulas: tuple[str, ...] = ()
    formulas_file: str | None = None
    structures: tuple[str, ...] = ()
    key_field: str = ""
    filters: MaterialFilters = field(default_factory=MaterialFilters)
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    sample: int | None = None
    limit: int | None = None
    on_error: str = "refuse"

    @property
    def empty(self) -> bool:
        """Whether no source of materials is given at all."""
        return self.elements == ElementLists() and not (self.formulas or self.formulas_file or self.structures)


@dataclass(frozen=True)
class Materials:
    """Materials to run, in their order, and (with on_error=skip) those that cannot be."""

    records: tuple[MaterialRecord, ...]
    refused: tuple[RefusedMaterial, ...] = ()


_Entry = MaterialRecord | RefusedMaterial


def load_materials(settings: MaterialsSettings, *, base_dir: Path, seed: int) -> Materials:
    """Collect, filter and select the materials of a campaign.

    Order: element lists (A slowest, X fastest), formulas, formulas file, structure files (sorted by name).

    Parameters
    ----------
    settings : MaterialsSettings
    base_dir : Path
        What relative paths in the settings are relative to.
    seed : int
        Of the campaign; decides what `sample` draws.

    Raises
    ------
    UsageError
        For duplicate keys, wrong settings, nothing left to run, and, unless on_error=skip, materials that cannot be
        read or built: one line for each.
    """
    if settings.on_error not in ("refuse", "skip"):
        raise UsageError(f"materials.on_error={settings.on_error}: must be refuse or skip")
    entries = [*_from_elements(settings), *_from_formulas(settings, base_dir), *_from_structures(settings, base_dir)]
    if not entries:
        raise UsageError(
            'materials: none; name files ("materials.structures=[crystals/*.cif]") or formulas '
            '("materials.formulas=[Cs2AgBiBr6]", materials.formulas_file=list.csv), or widen materials.filters'
        )
    entries = _select_keys(entries, settings)
    refused = tuple(entry for entry in entries if isinstance(entry, RefusedMaterial))
    records = [entry for entry in entries if isinstance(entry, MaterialRecord)]
    if refused and (settings.on_error == "refuse" or not records):
        remedy = "materials.on_error=skip goes on without" if records else "none is left to run"
        count = "1 material" if len(refused) == 1 else f"{len(refused)} materials"
        lines = [f"{count} cannot be used ({remedy}):", *refused]
        raise UsageError("\n  ".join(map(str, lines)))
    _refuse_duplicates(entries)
    return Materials(tuple(_sample(records, settings, seed)), refused)


def _from_elements(settings: MaterialsSettings) -> Iterator[_Entry]:
    """Yield each composition once, though two combinations of the lists may describe it."""
    lists = settings.elements
    missing = [item.name for item in fields(lists) if not getattr(lists, item.name)]
    if len(missing) == len(fields(lists)):
        return
    if missing:
        raise UsageError(f"materials.elements: {', '.join(missing)} must not be empty")
    for item in fields(lists):
        for symbol in getattr(lists, item.name):
            if symbol not in atomic_numbers:
                raise UsageError(f"materials.elements.{item.name}: {symbol!r} is not the symbol of an element")
    seen: set[str] = set()
    for a, m, m_prime, x in product(lists.A, lists.M, lists.M_prime, lists.X):
        entry = _from_formula(f"{a}2{m}{m_prime}{x}6", "element lists", settings.filters)
        if entry is None or entry.key in seen:
            continue
        seen.add(entry.key)
        if isinstance(entry, MaterialRecord) or not settings.filters.charge_neutral:
            yield entry


def _from_formulas(settings: MaterialsSettings, base_dir: Path) -> Iterator[_Entry]:
    sources = [(formula, f"materials.formulas entry {i}") for i, formula in enumerate(settings.formulas, start=1)]
    if settings.formulas_file:
        sources += read_formulas(Path(base_dir, expanded(settings.formulas_file)))
    for formula, source in sources:
        entry = _from_formula(formula, source, settings.filters)
        if entry is not None:
            yield entry


def _from_formula(formula: str, source: str, filters: MaterialFilters) -> _Entry | None:
    """Return None for a compound that the filters leave out."""
    try:
        compound = interpret(formula)
    except UsageError as error:
        return RefusedMaterial(formula, source, str(error))
    if not filters.admits(compound):
        return None
    key = compound.formula
    return MaterialRecord(key, key, compound.structure(), source, compound.prototype, compound.descriptors)


def _from_structures(settings: MaterialsSettings, base_dir: Path) -> Iterator[_Entry]:
    for pattern in settings.structures:
        for path in find_files(pattern, base_dir):
            for item in read_structures(path, key_field=settings.key_field):
                if isinstance(item, RefusedMaterial):
                    yield item
                else:
                    yield MaterialRecord(item.key, _formula(item.structure), item.structure, item.source)


def _formula(structure: Structure) -> str:
    return canonical_formula(str(to_ase(structure).symbols.formula))


def _select_keys(entries: list[_Entry], settings: MaterialsSettings) -> list[_Entry]:
    for setting, patterns in (("include", settings.include), ("exclude", settings.exclude)):
        for pattern in patterns:
            if not any(_matches(entry.key, [pattern]) for entry in entries):
                raise UsageError(f"materials.{setting}: {pattern!r} matches none of the {len(entries)} materials")
    selected = [
        entry
        for entry in entries
        if (not settings.include or _matches(entry.key, settings.include)) and not _matches(entry.key, settings.exclude)
    ]
    if not selected:
        raise UsageError("materials: include and exclude leave none")
    return selected


def _matches(key: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(key, pattern) for pattern in patterns)


def _refuse_duplicates(entries: Iterable[_Entry]) -> None:
    """Refuse a key that names two materials; of those that cannot be used, the sources tell them apart."""
    first: dict[str, _Entry] = {}
    for entry in entries:
        other = first.setdefault(entry.key, entry)
        if other is not entry and not (isinstance(entry, RefusedMaterial) and isinstance(other, RefusedMaterial)):
            raise UsageError(
                f"material {entry.key} is given twice: {other.source}, and {entry.source}; leave one out, or rename it"
            )


def _sample(records: list[MaterialRecord], settings: MaterialsSettings, seed: int) -> list[MaterialRecord]:
    """Draw by the hash of each key, so that the draw depends neither on the order nor on the other materials."""
    for name, count in (("sample", settings.sample), ("limit", settings.limit)):
        if count is not None and count < 1:
            raise UsageError(f"materials.{name}={count}: must be at least 1")
    if settings.sample is not None:
        drawn = sorted(records, key=lambda r: hashlib.blake2b(f"{seed}/{r.key}".encode()).digest())[: settings.sample]
        chosen = {record.key for record in drawn}
        records = [record for record in records if record.key in chosen]
    return records[: settings.limit]
