"""Reference values of sigma(300 K): from a table of formulas, or from another model of the same archive."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from driver.errors import UsageError
from driver.structures.prototypes import canonical_formula

FORMULA_COLUMN = "formula"
SIGMA_COLUMN = "sigma_300K"

CUBIC = frozenset({221, 225})
"""Space groups of the cubic perovskite and elpasolite, which a table of formulas is about."""

CAVEATS = (
    "The DFT reference is PBE without Hubbard U and without spin polarisation; MPtrj and OMat24 hold PBE+U for some "
    "fluorides, so models trained on them differ from it by construction.",
    "Compounds with a DFT sigma of 2 and above were cut from the reference table: the most unstable ones are missing.",
    "Sigma compares models of the forces at each model's own sampled configurations: agreement may hide errors that "
    "cancel between forces, force constants and sampling.",
)
"""Printed with every comparison against the DFT table."""

MODEL_CAVEATS = (
    "The reference is another model, not an experiment or DFT: agreement says that the models agree, not that they are "
    "right.",
    CAVEATS[2],
)
"""Printed with every comparison of two models."""


@dataclass(frozen=True)
class Reference:
    """Reference sigma by key.

    Attributes
    ----------
    name : str
        File name or model key, for titles.
    sigma : dict
        Canonical formula (driver.structures.prototypes) or, for a model, material key -> sigma(300 K).
    by_formula : bool
        Which of the two the keys are.
    """

    name: str
    sigma: Mapping[str, float]
    by_formula: bool

    @property
    def caveats(self) -> tuple[str, ...]:
        """What a reader of a comparison must know."""
        return CAVEATS if self.by_formula else MODEL_CAVEATS


def reference_file(given: str, models: Sequence[str]) -> Reference | None:
    """Return the reference that `--reference` names if that is a file, None if it is one of the archive's models.

    Raises
    ------
    UsageError
        If it is neither, or the file is not a table of sigma.
    """
    if given in models:
        return None
    if not Path(given).is_file():
        raise UsageError(f"reference {given!r} is neither a file nor a model of this archive ({', '.join(models)})")
    return read_reference(Path(given))


def from_model(table: pd.DataFrame, model: str) -> Reference:
    """Return the sigma of one model's valid runs in a metrics table."""
    rows = table[(table["model"] == model) & table["run_valid"].fillna(False) & table["sigma_pooled"].notna()]
    return Reference(model, dict(zip(rows["material"], rows["sigma_pooled"].astype(float), strict=True)), False)


def read_reference(path: Path) -> Reference:
    """Read a CSV file with (at least) the columns `formula` and `sigma_300K`; rows without a sigma are passed over.

    Raises
    ------
    UsageError
        Naming the file, the line and what is wrong with it.
    """
    sigma: dict[str, float] = {}
    first_line: dict[str, int] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = {FORMULA_COLUMN, SIGMA_COLUMN} - set(reader.fieldnames or ())
            if missing:
                raise UsageError(f"{path}: no column {' and '.join(sorted(missing))}; a CSV header must name it")
            for entry in reader:
                _add(sigma, first_line, entry, f"{path}, line {reader.line_num}", reader.line_num)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path} is not a CSV file: {error}") from error
    if not sigma:
        raise UsageError(f"{path}: no compound with a value of {SIGMA_COLUMN}")
    return Reference(path.name, sigma, True)


def _add(
    sigma: dict[str, float], first_line: dict[str, int], entry: Mapping[str, str | None], where: str, line: int
) -> None:
    text = (entry[SIGMA_COLUMN] or "").strip()
    if not text:
        return
    try:
        value = float(text)
    except ValueError:
        raise UsageError(f"{where}: {SIGMA_COLUMN} {text!r} is not a number") from None
    if not (math.isfinite(value) and value >= 0.0):
        raise UsageError(f"{where}: {SIGMA_COLUMN} {text} is not a finite number of 0 or more")
    try:
        formula = canonical_formula((entry[FORMULA_COLUMN] or "").strip())
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error
    if formula in first_line:
        raise UsageError(f"{where}: {formula} is there already, on line {first_line[formula]}")
    sigma[formula], first_line[formula] = value, line
