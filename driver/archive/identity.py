"""What the results of a campaign depend on, and where that differs from what an archive was made with. Pure.

Settings, structures and model files are compared whenever they meet an archive, whatever is left to do: results of
different inputs must never stand side by side under one name. More materials or models are no difference.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from driver.archive.records import ArchiveError, MaterialRecord, ModelRecord, Structure
from driver.archive.schema import structure_checksum

_SHOWN = 5
"""Differences that a message names; of the others it says how many there are."""

_SAME_VOLUME = 1e-6
"""Relative; closer ones are told apart by lattice vectors."""


@dataclass(frozen=True)
class Difference:
    """One input that differs: what, and what it was (`stored`) and is (`now`), for people."""

    what: str
    stored: str
    now: str

    def __str__(self) -> str:
        return f"{self.what}: archive {self.stored}, now {self.now}"


def different_settings(stored: Mapping[str, str], now: Mapping[str, str]) -> list[Difference]:
    """Compare settings that results depend on (dotted name -> JSON text)."""
    pairs = ((name, stored.get(name, "unset"), now.get(name, "unset")) for name in sorted({*stored, *now}))
    return [Difference(name, before, after) for name, before, after in pairs if before != after]


def different_materials(
    stored: Mapping[str, str], now: Iterable[MaterialRecord], structure_of: Callable[[str], Structure]
) -> list[Difference]:
    """Compare the structures of materials that an archive has.

    Parameters
    ----------
    stored : mapping
        Key -> checksum of its structure.
    now : iterable of MaterialRecord
    structure_of : callable
        Returns the stored structure of a key; called for those that differ, to say how.
    """
    return [
        Difference(f"material {record.key}", *_contrast(record, structure_of))
        for record in now
        if record.key in stored and stored[record.key] != structure_checksum(record.structure)
    ]


def different_models(stored: Mapping[str, ModelRecord], now: Iterable[ModelRecord]) -> list[Difference]:
    """Compare files and heads of the models that an archive has."""
    return [
        Difference(f"model {record.key}: {what}", repr(before), repr(after))
        for record in now
        if record.key in stored
        for what in ("sha256", "head")
        if (before := getattr(stored[record.key], what)) != (after := getattr(record, what))
    ]


def refusal(path: Path, differences: Sequence[Difference | str]) -> str:
    """Return the line that names what differs from an archive, and what to do."""
    texts = [str(difference) for difference in differences]
    shown = texts[:_SHOWN] + ([f"and {len(texts) - _SHOWN} more"] if len(texts) > _SHOWN else [])
    keyed = any(text.startswith(("material ", "model ")) for text in texts)
    hint = "; a changed structure or model file can also be added under another key" if keyed else ""
    return f"{path} was made with other inputs ({'; '.join(shown)}): restore them, or set another name={hint}"


def _contrast(record: MaterialRecord, structure_of: Callable[[str], Structure]) -> tuple[str, str]:
    """Say how two structures differ: the first of atoms, volume, lattice vectors and positions that does."""
    now = record.structure
    try:
        stored = structure_of(record.key)
    except (ArchiveError, OSError, KeyError, RuntimeError):  # dropped, or damaged
        return "another structure", "this one"
    elements, elements_now = (Counter(s.numbers.tolist()) for s in (stored, now))
    if elements != elements_now:
        return _composition(elements), _composition(elements_now)
    if abs(stored.volume - now.volume) > _SAME_VOLUME * stored.volume:
        return f"a cell of {stored.volume:.6g} A^3", f"{now.volume:.6g} A^3"
    if not np.array_equal(stored.cell, now.cell):
        return "other lattice vectors", f"different by up to {np.abs(stored.cell - now.cell).max():.2g} A"
    if not np.array_equal(stored.numbers, now.numbers):
        return "atoms in another order", "in this one"
    return "other positions", f"different by up to {np.abs(stored.positions - now.positions).max():.2g} A"


def _composition(elements: Mapping[int, int]) -> str:
    """Write atoms by atomic number: this package knows no symbols."""
    return ", ".join(f"{count} of Z={number}" for number, count in sorted(elements.items()))
