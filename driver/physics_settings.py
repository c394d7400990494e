"""The settings that results depend on, as an archive keeps them, and how they differ from those of another run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from driver.settings import SupercellSettings

_MATRIX, _MEANING = "supercell.matrix", "supercell.matrix_meaning"
_ROWS = json.dumps("rows")


def physics_of(settings: Any, prefix: str = "") -> dict[str, str]:
    """Flatten the settings that results depend on.

    Returns
    -------
    dict
        Dotted name -> value as JSON text. A matrix of the supercell that its transpose differs from comes with
        `supercell.matrix_meaning`: where an archive does not have that, its matrix has the vectors in columns.
    """
    flat: dict[str, str] = {}
    if isinstance(settings, SupercellSettings) and not _is_symmetric(settings):
        flat[f"{prefix}matrix_meaning"] = _ROWS
    for item in fields(settings):
        value = getattr(settings, item.name)
        if is_dataclass(value):
            flat |= physics_of(value, f"{prefix}{item.name}.")
        elif item.metadata.get("physics"):
            flat[prefix + item.name] = json.dumps(value)
    return flat


def physics_differences(stored: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Describe how the settings that an archive was made with differ from the present ones.

    Parameters
    ----------
    stored : mapping of str to str
        From an archive's header.
    now : mapping of str to str
        From `physics_of`.

    Returns
    -------
    list of str
        One per setting, each with the value that would continue the archive; empty if it can be continued.
    """
    before, why = _in_rows(stored)
    after, _ = _in_rows(now)
    return [
        f"{name}: archive {before.get(name, 'unset')}{why.get(name, '')}, now {after.get(name, 'unset')}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]


def _in_rows(physics: Mapping[str, str]) -> tuple[Mapping[str, str], dict[str, str]]:
    """Return settings with the supercell's lattice vectors in rows, and why one reads otherwise than it is stored.

    Earlier versions took the nine numbers column by column, against their documentation.
    """
    if physics.get(_MEANING) == _ROWS:
        return {name: value for name, value in physics.items() if name != _MEANING}, {}
    matrix = json.loads(physics.get(_MATRIX, "[]"))
    ignored = json.loads(physics.get("supercell.min_length_A", "null")) is not None
    rows = _transposed(matrix)
    if _MEANING in physics or ignored or rows == matrix:
        return physics, {}
    why = f" (stored as {physics[_MATRIX]} by a version that took the nine numbers as columns; they are rows)"
    return {**physics, _MATRIX: json.dumps(rows)}, {_MATRIX: why}


def _is_symmetric(supercell: SupercellSettings) -> bool:
    """Return whether rows and columns make no difference."""
    return supercell.min_length_A is not None or _transposed(supercell.matrix) == list(supercell.matrix)


def _transposed(matrix: Sequence[int]) -> list[int]:
    """Return the entries of a 3 x 3 matrix column by column; of three diagonal entries, the same."""
    return [matrix[3 * row + column] for column in range(3) for row in range(3)] if len(matrix) == 9 else list(matrix)
