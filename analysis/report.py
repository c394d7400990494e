"""The report: one self-contained HTML page about a campaign, with its figures and metrics as files beside it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from matplotlib.figure import Figure

from analysis import sections
from analysis.html import inline_figure
from analysis.plots import bands_figure, labels_figure, running_figure, save_figure, sigma_figure, svg
from analysis.record import CampaignRecord
from analysis.reduce import Reduction
from analysis.sections import Card
from analysis.tables import lowest_frequency
from driver.archive.reader import open_archive

MAX_BAND_FIGURES = 60
"""Materials whose bands are shown on the page: more would make it slow to open."""


@dataclass(frozen=True)
class _Figures:
    """Makes a figure a file of the report and an element of its page, under one name."""

    folder: Path

    def add(self, figure: Figure, name: str, caption: str) -> str:
        """Write the figure's files; return its HTML."""
        safe = re.sub(r"[^A-Za-z0-9_.-]", "_", name)
        save_figure(figure, self.folder / safe)
        return inline_figure(svg(figure), safe, caption)


def write_report(archive: str | Path, reduction: Reduction, directory: Path) -> Path:
    """Write `index.html`, `metrics.csv` and `figures/` into a directory that is there; return the page.

    Parameters
    ----------
    archive : str or Path
    reduction : Reduction
        Of that archive, with details.
    directory : Path
    """
    (directory / "figures").mkdir(exist_ok=True)
    reduction.table.to_csv(directory / "metrics.csv", index=False)
    with open_archive(archive) as view:
        record = CampaignRecord.read(view)
    figures = _Figures(directory / "figures")
    cards, omitted = _cards(reduction, figures)
    body = "\n".join(
        [
            sections.heading(record, reduction),
            sections.summary(record, reduction),
            sections.stability(reduction),
            sections.anharmonicity(_overview_figures(reduction, figures)),
            sections.phonons(cards, omitted),
            sections.failures(record, reduction),
            sections.methods(reduction),
            sections.provenance(record),
        ]
    )
    page = directory / "index.html"
    page.write_text(_page(record.header.campaign, body), encoding="utf-8")
    return page


def _page(campaign: str, body: str) -> str:
    assets = resources.files("analysis") / "assets"
    style, script = (assets.joinpath(name).read_text(encoding="utf-8") for name in ("report.css", "report.js"))
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Latdyn: {sections.escape(campaign)}</title>\n<style>\n{style}</style>\n</head>\n<body>\n{body}\n"
        f"<script>\n{script}</script>\n</body>\n</html>\n"
    )


def _overview_figures(reduction: Reduction, figures: _Figures) -> list[str]:
    """Return the figures that show all materials at once; none where there is no sigma."""
    table = reduction.table
    if not table["sigma_pooled"].notna().any():
        return []
    with_minimum = table.assign(min_frequency_THz=[lowest_frequency(row) for row in table.to_dict("records")])
    shown = [
        figures.add(
            labels_figure(with_minimum),
            "labels",
            "Both labels at once. Left of the upright line a mode is imaginary; above the level line σ ≥ 1. "
            "Materials at the lower left are harmonically unstable, yet anharmonically stable.",
        ),
        figures.add(
            sigma_figure(table),
            "sigma_distribution",
            "Distribution of σ over materials. Dashed: σ = 1, where the harmonic model explains nothing.",
        ),
    ]
    running = [
        (model, time, values)
        for (_, model), result in reduction.results.items()
        if result.anharmonicity
        for time, values in result.anharmonicity.running
    ]
    if running:
        caption = (
            "σ of each trajectory up to a given time, a line for each replica: a level end means it has converged."
        )
        shown.append(figures.add(running_figure(running), "running_sigma", caption))
    return shown


def _cards(reduction: Reduction, figures: _Figures) -> tuple[list[Card], list[str]]:
    """Return a card for each material that has bands, up to a limit, and the materials beyond it."""
    materials = list(dict.fromkeys(material for material, _ in reduction.results))
    models = list(dict.fromkeys(model for _, model in reduction.results))
    cards: list[Card] = []
    omitted: list[str] = []
    for material in materials:
        found = [(model, reduction.results[material, model]) for model in models]
        curves = [(model, r.bands, r.phonons.dos if r.phonons else None) for model, r in found if r.bands is not None]
        if not curves:
            continue
        if len(cards) >= MAX_BAND_FIGURES:
            omitted.append(material)
            continue
        rows = reduction.table[reduction.table["material"] == material].to_dict("records")
        drawn = figures.add(bands_figure(curves), f"bands_{material}", sections.card_caption(rows))
        cards.append(Card(material, rows[0]["space_group_symbol"], rows[0]["conventional_a_A"], drawn))
    return cards, omitted
