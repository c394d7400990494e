"""Sigma of every model of an archive against a reference: pairs, scores, files, a page of Markdown."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.plots import parity_figure, save_figure
from analysis.reference import CUBIC, Reference, same_temperature, sigma_title
from analysis.scores import RESAMPLES, SCORES, Confusion, Score, confusion, score_all
from analysis.stability import tells_from_one
from driver.errors import UsageError
from driver.structures.prototypes import ELPASOLITE, canonical_formula

CLASSES = (
    "Unstable: sigma of 1 and above. Undecided: the model's sigma has an error that is not converged, or is within two "
    "errors of 1; such compounds are classified by their sigma all the same."
)
"""How the classes of a comparison are to be read."""


@dataclass(frozen=True)
class Comparison:
    """One model against the reference.

    Attributes
    ----------
    model : str
    pairs : DataFrame
        Columns material, formula, sigma_reference, sigma_model, sigma_model_error, decided (whether sigma_model gives a
        label, see stability.py); one row for each compound compared.
    excluded : dict
        Material -> why it is not among the pairs.
    scores : dict
        Name (scores.SCORES) -> `Score`.
    confusion : Confusion
    """

    model: str
    pairs: pd.DataFrame
    excluded: Mapping[str, str]
    scores: Mapping[str, Score]
    confusion: Confusion

    @property
    def undecided(self) -> int:
        """Number of compounds that are classified by their sigma although it gives no label."""
        return int((~self.pairs["decided"].astype(bool)).sum())


def compare(
    table: pd.DataFrame, reference: Reference, target_K: float | None, *, resamples: int = RESAMPLES
) -> list[Comparison]:
    """Compare every model in a metrics table, but the reference itself, with the reference.

    Parameters
    ----------
    table : DataFrame
        Of metrics (columns.py).
    reference : Reference
    target_K : float or None
        The temperature of the archive's runs; None where it does not say.
    resamples : int
        Bootstrap samples behind the intervals.

    Raises
    ------
    UsageError
        If the runs are not at the reference's temperature, or no compound of any model can be compared.
    """
    known = None not in (target_K, reference.temperature_K)
    if known and not same_temperature(target_K, reference.temperature_K):
        raise UsageError(
            f"the archive's runs are at {target_K:g} K; {reference.name} has {sigma_title(reference.temperature_K)}"
        )
    models = [model for model in dict.fromkeys(table["model"]) if reference.by_formula or model != reference.name]
    if not models:
        raise UsageError(f"the archive has no other model than {reference.name} to compare with it")
    comparisons = [_compare(table[table["model"] == model], model, reference, resamples) for model in models]
    if not any(len(comparison.pairs) for comparison in comparisons):
        reasons = [f"{material}: {why}" for comparison in comparisons for material, why in comparison.excluded.items()]
        told = f" ({'; '.join(reasons[:3])}{', ...' if len(reasons) > 3 else ''})" if reasons else ""
        raise UsageError(f"no compound of the archive can be compared with {reference.name}{told}")
    return comparisons


def _compare(rows: pd.DataFrame, model: str, reference: Reference, resamples: int) -> Comparison:
    excluded: dict[str, str] = {}
    chosen: dict[str, Mapping[Any, Any]] = {}
    for row in rows.sort_values("prototype", key=lambda name: name != ELPASOLITE, kind="stable").to_dict("records"):
        key = _key(row, reference)
        reason = _exclusion(row, key, reference)
        if not reason and key in chosen:
            reason = f"same composition as {chosen[key]['material']}, which is compared"
        if reason:
            excluded[row["material"]] = reason
        else:
            chosen[key] = row
    pairs = pd.DataFrame(
        [
            {
                "material": row["material"],
                "formula": row["formula"],
                "sigma_reference": reference.sigma[key],
                "sigma_model": float(row["sigma_pooled"]),
                "sigma_model_error": float(row["sigma_pooled_error"]),
                "decided": tells_from_one(
                    float(row["sigma_pooled"]), float(row["sigma_pooled_error"]), bool(row["sigma_error_converged"])
                ),
            }
            for key, row in chosen.items()
        ],
        columns=["material", "formula", "sigma_reference", "sigma_model", "sigma_model_error", "decided"],
    )
    truth = pairs["sigma_reference"].to_numpy(dtype=np.float64)
    claim = pairs["sigma_model"].to_numpy(dtype=np.float64)
    return Comparison(model, pairs, excluded, score_all(truth, claim, resamples=resamples), confusion(truth, claim))


def _key(row: Mapping[Any, Any], reference: Reference) -> str:
    """Return under what a row is looked up. Formulas in canonical form, so that the order of elements is no matter."""
    if not reference.by_formula:
        return str(row["material"])
    try:
        return canonical_formula(str(row["formula"]))
    except UsageError:
        return ""


def _exclusion(row: Mapping[Any, Any], key: str, reference: Reference) -> str:
    """Return why a row cannot be compared, or an empty text."""
    if key not in reference.sigma:
        return f"not in {reference.name}"
    group = row.get("space_group_initial")
    if reference.by_formula and not pd.isna(group) and int(str(group).split(".")[0]) not in CUBIC:
        return f"space group {group:g}, while the reference is about the cubic phase"
    if pd.isna(row["sigma_pooled"]):
        return row["failure"] or "no sigma"
    if not row["run_valid"]:
        return row["run_problems"] or "run not valid"
    return ""


def write_comparison(comparisons: list[Comparison], reference: Reference, directory: Path) -> list[Path]:
    """Write, into a directory that is there, pairs as CSV, parity plots, summary.json and summary.md; return them."""
    written = []
    for comparison in comparisons:
        pairs = directory / f"pairs_{comparison.model}.csv"
        comparison.pairs.to_csv(pairs, index=False)
        written.append(pairs)
        if len(comparison.pairs):
            title = f"{comparison.model} against {reference.name}"
            figure = parity_figure(comparison.pairs, title, reference.temperature_K)
            written += save_figure(figure, directory / f"parity_{comparison.model}")
    summary = directory / "summary.json"
    summary.write_text(json.dumps(summary_json(comparisons, reference), indent=2, allow_nan=False) + "\n")
    page = directory / "summary.md"
    page.write_text(summary_markdown(comparisons, reference), encoding="utf-8")
    return [*written, summary, page]


def summary_json(comparisons: list[Comparison], reference: Reference) -> dict[str, Any]:
    """Return scores, intervals, confusion matrices and exclusions as plain JSON (undefined values are null)."""

    def number(value: float) -> float | None:
        return value if np.isfinite(value) else None

    return {
        "reference": reference.name,
        "reference_compounds": len(reference.sigma),
        "temperature_K": reference.temperature_K,
        "caveats": list(reference.caveats),
        "models": {
            comparison.model: {
                "compounds": len(comparison.pairs),
                "undecided": comparison.undecided,
                "scores": {
                    name: {"value": number(s.value), "low_95": number(s.low), "high_95": number(s.high)}
                    for name, s in comparison.scores.items()
                },
                "confusion": asdict(comparison.confusion),
                "excluded": dict(comparison.excluded),
            }
            for comparison in comparisons
        },
    }


def summary_markdown(comparisons: list[Comparison], reference: Reference) -> str:
    """Return the comparison as Markdown: a table of scores with 95 % intervals, confusion matrices, caveats."""
    names = [comparison.model for comparison in comparisons]
    lines = [
        f"# S{sigma_title(reference.temperature_K)[1:]} against {reference.name}",
        "",
        f"| | {' | '.join(names)} |",
        f"|---|{'---|' * len(names)}",
        f"| compounds | {' | '.join(str(len(comparison.pairs)) for comparison in comparisons)} |",
        f"| of these undecided | {' | '.join(str(comparison.undecided) for comparison in comparisons)} |",
    ]
    for score in SCORES:
        lines.append(f"| {score} | {' | '.join(str(comparison.scores[score]) for comparison in comparisons)} |")
    lines += ["", f"In brackets: 95 % bootstrap intervals over compounds. {CLASSES}", ""]
    for comparison in comparisons:
        c = comparison.confusion
        lines += [
            f"## {comparison.model}",
            "",
            "| | predicted stable | predicted unstable |",
            "|---|---|---|",
            f"| stable in the reference | {c.stable_found} | {c.stable_missed} |",
            f"| unstable in the reference | {c.unstable_missed} | {c.unstable_found} |",
            "",
        ]
        if comparison.excluded:
            lines += [f"Not compared: {len(comparison.excluded)}.", ""]
            lines += [f"- {material}: {why}" for material, why in comparison.excluded.items()] + [""]
    return "\n".join([*lines, "## Caveats", "", *(f"- {caveat}" for caveat in reference.caveats), ""])
