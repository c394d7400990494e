from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from analysis import report
from analysis.harmonic import bands, build_phonopy
from analysis.html import duration, inline_figure, number_cell
from analysis.plots import bands_figure, parity_figure, svg
from analysis.reduce import reduce_archive
from analysis.settings import AnalysisSettings

COARSE = AnalysisSettings(mesh_length_A=20.0)
VOID = {"meta", "input", "br", "link", "path", "use", "circle", "rect"}


@pytest.fixture(scope="module")
def page(toy_archive, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    reduction = reduce_archive(toy_archive, COARSE, details=True)
    return report.write_report(toy_archive, reduction, folder)


class Checker(HTMLParser):
    """Collects tags that are not closed, identifiers that occur twice, and addresses that leave the page."""

    def __init__(self) -> None:
        super().__init__()
        self.stack, self.identifiers, self.addresses = [], [], []

    def handle_starttag(self, tag, attributes):
        if tag not in VOID:
            self.stack.append(tag)
        for name, value in attributes:
            if name == "id":
                self.identifiers.append(value)
            if name in ("src", "href", "xlink:href", "data", "action"):
                self.addresses.append(value)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.stack.pop() == tag


def test_page_is_well_formed_and_self_contained(page):
    checker = Checker()
    text = page.read_text()
    checker.feed(text)
    assert checker.stack == []
    assert len(checker.identifiers) == len(set(checker.identifiers))
    assert [a for a in checker.addresses if not a.startswith("#")] == ["metrics.csv"]
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    inner = {a[1:] for a in checker.addresses if a.startswith("#")}
    assert inner <= set(checker.identifiers)


def test_page_says_what_there_is(page):
    text = page.read_text()
    for word in ("Cs2AgBiBr6", "Cs2NaBiCl6", "model-a", "undecided", "unstable", "given up, no results", "4 / 8"):
        assert word in text
    assert "does not know Rb &lt;element&gt;" in text
    assert "<element>" not in text
    assert "Traceback (most recent call last)" in text
    assert "0.0 %" not in text
    assert re.search(r"\d+ on the supercell&#x27;s q points, [\d.]+ % of the mesh; lowest at q = \(", text)


def test_files_beside_the_page(page):
    files = {path.name for path in (page.parent / "figures").iterdir()}
    assert {"sigma_distribution.svg", "labels.png", "running_sigma.svg", "bands_Cs2AgBiBr6.png"} <= files
    assert len(pd.read_csv(page.parent / "metrics.csv")) == 8


def test_figures_beyond_the_limit_are_named(toy_archive, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "MAX_BAND_FIGURES", 1)
    reduction = reduce_archive(toy_archive, COARSE, details=True)
    text = report.write_report(toy_archive, reduction, tmp_path).read_text()
    assert "2 further materials (Cs2NaBiCl6, Cs2NaInCl6)" in text


def test_report_of_an_archive_without_results(builder, stable_crystal, tmp_path):
    builder.add_models("m")
    builder.add_material("A&B", stable_crystal.constants.unitcell)
    text = report.write_report(builder.path, reduce_archive(builder.path, COARSE, details=True), tmp_path).read_text()
    assert "A&amp;B" in text
    assert "No trajectory has been reduced yet" in text
    assert "No task has failed for good" in text


def test_bands_keep_gaps_where_the_path_jumps(stable_crystal):
    curves = bands(build_phonopy(stable_crystal.constants), points=40)
    figure = bands_figure([("m", curves, None)])
    line = figure.axes[0].get_lines()[0]
    gap = np.isnan(np.asarray(line.get_ydata(), dtype=float))
    assert gap.sum() == 1
    text = inline_figure(svg(figure), "x")
    assert 'id="x-figure_1"' in text
    assert "currentColor" in text
    assert "#ffffff" not in text, "the ground is the page's, light or dark"


def test_parity_figure_has_a_colour_for_each_halide():
    pairs = pd.DataFrame(
        {
            "formula": ["Cs2AgBiBr6", "Cs2AgBiCl6", "K2NaAlF6", "Cs2TlBiI6"],
            "sigma_reference": [0.3, 0.4, 0.5, 1.2],
            "sigma_model": [0.3, 0.45, 0.4, 1.0],
            "sigma_model_error": [0.01, np.nan, 0.01, 0.01],
        }
    )
    labels = parity_figure(pairs, "title").axes[0].get_legend_handles_labels()[1]
    assert labels == ["F", "Cl", "Br", "I"]


def test_small_pieces():
    assert duration(12.34) == "12.3 s"
    assert duration(247) == "4 min 07 s"
    assert duration(11530) == "3 h 12 min"
    assert "−0.50" in number_cell(-0.5, 2)
    assert 'data-value=""' in number_cell(float("nan"), 2)
