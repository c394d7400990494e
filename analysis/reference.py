"""Reference values of sigma: from a table of formulas, or from another model of the same archive."""

from __future__ import annotations

import codecs
import csv
import hashlib
import io
import math
import re
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from ase.formula import Formula

from analysis.stability import SIGMA_UNSTABLE
from driver.errors import UsageError
from driver.structures.prototypes import canonical_formula

CUBIC = frozenset({221, 225})
"""Space groups of the cubic perovskite and elpasolite, which a table of formulas is about."""

SAMPLING_CAVEAT = (
    "Sigma compares models of the forces at each model's own sampled configurations: agreement may hide errors that "
    "cancel between forces, force constants and sampling."
)
"""Holds whatever the reference."""

MODEL_CAVEATS = (
    "The reference is another model, not an experiment or DFT: agreement says that the models agree, not that they are "
    "right.",
    SAMPLING_CAVEAT,
)
"""Printed with every comparison of two models."""

UNKNOWN_CAVEATS = (
    "Where this reference comes from is not known here: see that its sigma is pooled over frames, of the cubic phase, "
    "and what its own approximations are (--reference-kind names a table that Latdyn knows).",
    SAMPLING_CAVEAT,
)
"""Printed with every comparison against a table that is not among `KINDS`."""


_PUBLISHED_DIGITS = 0.001


@dataclass(frozen=True)
class Kind:
    """A published table that Latdyn knows.

    Attributes
    ----------
    citation : str
    caveats : tuple of str
        What a reader of a comparison with it must know.
    compositions : str
        Digest of its compositions (`composition_digest`); with the two figures below, the whole table is recognised in
        whatever form.
    median, unstable : float
        Median of its sigmas, and which fraction of them is 1 or more; published to three digits.
    """

    citation: str
    caveats: tuple[str, ...]
    compositions: str
    median: float
    unstable: float

    def is_of(self, sigma: Mapping[str, float]) -> bool:
        """Return whether a table is this one."""
        values = list(sigma.values())
        unstable = sum(value >= SIGMA_UNSTABLE for value in values) / len(values)
        return (
            abs(statistics.median(values) - self.median) <= _PUBLISHED_DIGITS
            and abs(unstable - self.unstable) <= _PUBLISHED_DIGITS
            and composition_digest(sigma) == self.compositions
        )


KINDS: Mapping[str, Kind] = {
    "yang-li-2022": Kind(
        citation="Yang and Li, Chem. Mater. 34, 9072 (2022)",
        caveats=(
            "The DFT reference is PBE without Hubbard U and without spin polarisation; MPtrj and OMat24 hold PBE+U for "
            "some fluorides, so models trained on them differ from it by construction.",
            "Compounds with a DFT sigma of 2 and above were cut from the reference table: the most unstable ones are "
            "missing.",
            SAMPLING_CAVEAT,
        ),
        compositions="6522e2f0802628ac6af98db32eadc7c5755c2d99a49547182470e4ab472e05ab",
        median=0.438,
        unstable=0.120,
    ),
}
"""Published tables by their names for `--reference-kind`."""

SAME_K = 0.5
"""Temperatures that differ by no more are the same."""

_SEPARATORS = ",;\t"

_SIGMA_NAME = re.compile(r"sigma_?(?:(\d+(?:\.\d+)?)_?k)?")
"""What a column of sigma is called, in lower case, with one underscore for whatever is no letter or digit."""


@dataclass(frozen=True)
class Reference:
    """Reference sigma by key.

    Attributes
    ----------
    name : str
        File name or model key, for titles.
    sigma : dict
        Canonical formula (driver.structures.prototypes) or, for a model, material key -> sigma.
    by_formula : bool
        Which of the two the keys are.
    temperature_K : float or None
        Of sigma; None where it is not known.
    caveats : tuple of str
        What a reader of a comparison must know.
    """

    name: str
    sigma: Mapping[str, float]
    by_formula: bool
    temperature_K: float | None
    caveats: tuple[str, ...]


def sigma_title(temperature_K: float | None) -> str:
    """Return `sigma(300 K)`, or `sigma` where the temperature is not known."""
    return "sigma" if temperature_K is None else f"sigma({temperature_K:g} K)"


def same_temperature(one_K: float | None, other_K: float | None) -> bool:
    """Return whether two temperatures are known and the same."""
    return one_K is not None and other_K is not None and abs(one_K - other_K) <= SAME_K


def is_model(given: str, models: Sequence[str]) -> bool:
    """Return whether `--reference` names one of the archive's models rather than a file.

    Raises
    ------
    UsageError
        If it is neither.
    """
    if given in models:
        return True
    if not Path(given).is_file():
        raise UsageError(f"reference {given!r} is neither a file nor a model of this archive ({', '.join(models)})")
    return False


def from_model(table: pd.DataFrame, model: str, temperature_K: float | None) -> Reference:
    """Return the sigma of one model's valid runs in a metrics table, at the temperature of the archive's runs."""
    rows = table[(table["model"] == model) & table["run_valid"].fillna(False) & table["sigma_pooled"].notna()]
    sigma = dict(zip(rows["material"], rows["sigma_pooled"].astype(float), strict=True))
    return Reference(model, sigma, False, temperature_K, MODEL_CAVEATS)


def read_reference(
    path: Path, *, wanted_K: float | None = None, stated_K: float | None = None, kind: str | None = None
) -> Reference:
    """Read a table of formulas and sigma; rows without a sigma are passed over.

    Its first line names the columns: `formula`, and one or several such as `sigma_300K` (in any case, with spaces,
    underscores or brackets), separated by commas, semicolons (then with decimal points or commas) or tabs.

    Parameters
    ----------
    path : Path
    wanted_K : float, optional
        Temperature of the archive's runs, by which one of several columns is chosen.
    stated_K : float, optional
        Temperature of a column that is called `sigma` alone.
    kind : str, optional
        Which of `KINDS` it is; where not given, a whole table that is one of them is recognised.

    Raises
    ------
    UsageError
        Naming the file, the line and what is wrong with it.
    """
    if kind is not None and kind not in KINDS:
        raise UsageError(f"no kind of reference {kind!r}; known are {', '.join(KINDS)}")
    lines = _text(path).splitlines(keepends=True)
    separator = max(_SEPARATORS, key=lines[0].count) if lines else ","
    try:
        reader = csv.reader(io.StringIO("".join(lines)), delimiter=separator)
        formula_column, sigma_column, temperature_K = _columns(path, next(reader, []), wanted_K, stated_K)
        entries = (
            (f"{path}, line {reader.line_num}", reader.line_num, _cell(row, formula_column), _cell(row, sigma_column))
            for row in reader
        )
        sigma = dict(_values(entries, decimal_comma=separator == ";"))
    except csv.Error as error:
        raise UsageError(f"{path} is not a CSV file: {error}") from error
    if not sigma:
        raise UsageError(f"{path}: no compound with a value of sigma")
    return Reference(path.name, sigma, True, temperature_K, _caveats(sigma, kind))


def composition_digest(formulas: Iterable[str]) -> str:
    """Return the SHA-256 of a set of compositions, whatever the order of compounds and of their elements."""
    counts = (sorted(Formula(formula).count().items()) for formula in formulas)
    return hashlib.sha256("\n".join(sorted(map(str, counts))).encode()).hexdigest()


def _caveats(sigma: Mapping[str, float], kind: str | None) -> tuple[str, ...]:
    if kind is not None:
        return KINDS[kind].caveats
    return next((known.caveats for known in KINDS.values() if known.is_of(sigma)), UNKNOWN_CAVEATS)


def _text(path: Path) -> str:
    data = path.read_bytes()
    encoding = "utf-16" if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not a CSV file: {error}") from error


def _columns(
    path: Path, header: Sequence[str], wanted_K: float | None, stated_K: float | None
) -> tuple[int, int, float | None]:
    """Return which columns hold formula and sigma, and the temperature of the latter."""
    names = [re.sub(r"[^a-z0-9.]+", "_", name.casefold().replace("σ", "sigma")).strip("_") for name in header]
    matches = ((at, _SIGMA_NAME.fullmatch(name)) for at, name in enumerate(names))
    found = [(at, float(match[1]) if match[1] else None) for at, match in matches if match]
    missing = [text for text, there in (("formula", "formula" in names), ("sigma_300K", bool(found))) if not there]
    if missing:
        shown = ", ".join(header[:6]) + (", ..." if len(header) > 6 else "") or "it is empty"
        raise UsageError(
            f"{path}: no column {' and '.join(missing)} in its first line ({shown}); the temperature in sigma_300K is "
            "that of the reference"
        )
    sigmas = [(at, stated_K if temperature is None else temperature) for at, temperature in found]
    fitting = (column for column in sigmas if same_temperature(column[1], wanted_K))
    at, temperature_K = next(fitting, sigmas[0])
    if temperature_K is None:
        raise UsageError(
            f"{path}: column {header[at]!r} names no temperature: call it sigma_300K, say, or state it with "
            "--reference-temperature"
        )
    return names.index("formula"), at, temperature_K


def _cell(row: Sequence[str], column: int) -> str:
    return row[column].strip() if column < len(row) else ""


def _values(entries: Iterator[tuple[str, int, str, str]], *, decimal_comma: bool) -> Iterator[tuple[str, float]]:
    first_line: dict[str, int] = {}
    for where, line, formula, text in entries:
        if not text:
            continue
        try:
            value = float(text.replace(",", ".") if decimal_comma else text)
        except ValueError:
            raise UsageError(f"{where}: sigma {text!r} is not a number") from None
        if not (math.isfinite(value) and value >= 0.0):
            raise UsageError(f"{where}: sigma {text} is not a finite number of 0 or more")
        try:
            key = canonical_formula(re.sub(r"\s", "", formula))
        except UsageError as error:
            raise UsageError(f"{where}: {error}") from error
        if key in first_line:
            raise UsageError(f"{where}: {key} is there already, on line {first_line[key]}")
        first_line[key] = line
        yield key, value
