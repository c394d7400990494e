"""Tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from rich.console import Group
from rich.table import Table
from rich.text import Text

from analysis.compare import CLASSES, Comparison
from analysis.reference import Reference, sigma_title
from analysis.scores import SCORES

MAX_ROWS = 200
"""Longer tables are cut on a terminal; the file holds all rows."""

LABEL_STYLES = {"stable": "green", "unstable": "red", "undecided": "dim"}


def label_text(value: Any) -> str:
    """Return a label column's value in words: stable, unstable, undecided."""
    if pd.isna(value):
        return "undecided"
    return "stable" if value else "unstable"


def with_error(value: Any, error: Any, digits: int = 3) -> str:
    """Return `0.336 ± 0.004`, without the error where it is unknown, a dash where there is no value."""
    if pd.isna(value):
        return "–"
    return f"{value:.{digits}f}" if pd.isna(error) else f"{value:.{digits}f} ± {error:.{digits}f}"


def metrics_table(table: pd.DataFrame) -> Table:
    """Return the stability table: material, model, minimum frequency, sigma, both labels, what went wrong."""
    shown = Table(caption=_cut(len(table)), caption_justify="left")
    for heading in ("material", "model"):
        shown.add_column(heading, no_wrap=True)
    for heading in ("lowest mode, supercell (THz)", "mesh (THz)", "sigma ± error"):
        shown.add_column(heading, justify="right")
    for heading in ("harmonic", "anharmonic"):
        shown.add_column(heading)
    shown.add_column("remark", overflow="fold")
    for row in table.head(MAX_ROWS).to_dict("records"):
        shown.add_row(
            Text(row["material"]),
            Text(row["model"]),
            with_error(row["min_frequency_commensurate_THz"], None, 2),
            with_error(row["min_frequency_mesh_THz"], None, 2),
            with_error(row["sigma_pooled"], row["sigma_pooled_error"]),
            *(_label(row[name]) for name in ("harmonically_stable", "anharmonically_stable")),
            Text(remark(row)),
        )
    return shown


def lowest_frequency(row: Any) -> float:
    """Return the frequency that speaks for a crystal; nan where there are no phonons.

    The lower of the two minima where a mode is imaginary. Otherwise that of the q points that fit the supercell: how
    near to Gamma a mesh comes, hence how low its acoustic modes, is a matter of its density.
    """
    supercell, mesh = row["min_frequency_commensurate_THz"], row["min_frequency_mesh_THz"]
    if pd.isna(supercell) or pd.isna(mesh):
        return float("nan")
    return float(min(supercell, mesh) if min(supercell, mesh) < 0.0 else supercell)


def imaginary_modes(row: Any) -> str:
    """Return which modes of a row are imaginary: how many there are, and the q point of the lowest; or `none`."""
    count, fraction = row["imaginary_modes_commensurate"], row["imaginary_modes_fraction"]
    if pd.isna(count) or pd.isna(fraction):
        return "–"
    if not (count or fraction):
        return "none"
    mesh = f"{100.0 * fraction:.2g} %" if fraction else "none"
    return f"{count or 'none'} on the supercell's q points, {mesh} of the mesh; lowest at q = ({row['worst_q']})"


def remark(row: Any) -> str:
    """Return, in one line, why a row lacks something: failure, invalid run, unclear sigma, stages still to come."""
    waiting = [stage for stage in ("relax", "displace", "dynamics") if row[f"{stage}_status"] in ("missing", "partial")]
    parts = [row["failure"], row["run_problems"]]
    if pd.isna(row["anharmonically_stable"]) and not pd.isna(row["sigma_pooled"]) and not row["run_problems"]:
        parts.append(row["anharmonic_reason"])
    if waiting and not row["failure"]:
        parts.append(f"{', '.join(waiting)} not finished")
    return "; ".join(part for part in parts if part)


def comparison_table(comparisons: Sequence[Comparison], reference: Reference) -> Group:
    """Return scores against a reference, one column for each model, and how its classes are to be read."""
    shown = Table()
    shown.add_column("")
    for comparison in comparisons:
        shown.add_column(comparison.model, justify="right")
    shown.add_row("compounds", *(str(len(comparison.pairs)) for comparison in comparisons))
    shown.add_row("of these undecided", *(str(comparison.undecided) for comparison in comparisons))
    for score in SCORES:
        shown.add_row(score, *(str(comparison.scores[score]) for comparison in comparisons))
    for heading, name in (("unstable, found", "unstable_found"), ("unstable, missed", "unstable_missed")):
        shown.add_row(heading, *(str(getattr(comparison.confusion, name)) for comparison in comparisons))
    for heading, name in (("stable, found", "stable_found"), ("stable, called unstable", "stable_missed")):
        shown.add_row(heading, *(str(getattr(comparison.confusion, name)) for comparison in comparisons))
    return Group(Text(f"{sigma_title(reference.temperature_K)} against {reference.name}"), shown, Text(CLASSES))


def _label(value: Any) -> Text:
    text = label_text(value)
    return Text(text, style=LABEL_STYLES[text])


def _cut(rows: int) -> str | None:
    return f"{rows - MAX_ROWS} more rows" if rows > MAX_ROWS else None
