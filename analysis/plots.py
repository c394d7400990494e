"""Figures: sigma distribution, parity, phonon bands, convergence. Each function returns a matplotlib figure."""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import pandas as pd
from ase.formula import Formula
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.harmonic import Bands, DensityOfStates
from analysis.stability import SIGMA_UNSTABLE

Floats = npt.NDArray[np.float64]
P = ParamSpec("P")
T = TypeVar("T")

COLOURS = ("#3d82cc", "#d9742b", "#2e8b6f", "#8a5fb0", "#b8475a", "#7a7a2e", "#3b9cc4", "#8c6d4f")
"""One for each model, in the archive's order; readable on white and on dark grounds, also for colour-blind readers."""

IMAGINARY = "#c8324a"
NEUTRAL = "#59636f"
"""Of axes and texts."""

ANIONS = ("F", "Cl", "Br", "I", "other")
"""By which compounds are coloured, each always the same."""

MANY_POINTS = 200
"""More points than these are drawn small."""

IMAGINARY_THZ = -0.02
"""Below this, the ground is tinted: less is rounding of the acoustic branches near Gamma."""

MAX_NAMED_POINTS = 24
"""More points than these are not named in a figure."""

STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.edgecolor": NEUTRAL,
    "axes.labelcolor": NEUTRAL,
    "xtick.color": NEUTRAL,
    "ytick.color": NEUTRAL,
    "text.color": NEUTRAL,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "latdyn",
    "path.simplify_threshold": 0.3,
    "savefig.transparent": True,
}
"""A transparent ground, so that one figure serves light and dark pages."""


def _styled(draw: Callable[P, T]) -> Callable[P, T]:
    """Let a function draw in the style of the report, and leave matplotlib's settings as they were."""

    @functools.wraps(draw)
    def styled(*args: P.args, **kwargs: P.kwargs) -> T:
        with mpl.rc_context(STYLE):
            return draw(*args, **kwargs)

    return styled


def _figure(width_in: float, height_in: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width_in, height_in), layout="constrained")
    return figure, figure.add_subplot()


@_styled
def svg(figure: Figure) -> str:
    """Return a figure as an SVG element that can stand within HTML (without XML prologue; texts stay texts)."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


@_styled
def save_figure(figure: Figure, path: Path) -> list[Path]:
    """Write a figure as `path`.svg and `path`.png (200 dpi, on white); return both files."""
    vector, raster = path.with_name(path.name + ".svg"), path.with_name(path.name + ".png")
    figure.savefig(vector, metadata={"Date": None})
    figure.savefig(raster, dpi=200, transparent=False, facecolor="white")
    return [vector, raster]


@_styled
def parity_figure(pairs: pd.DataFrame, title: str, temperature_K: float | None = None) -> Figure:
    """Sigma of a model against the reference, by halide, with error bars, the diagonal and both thresholds.

    Parameters
    ----------
    pairs : DataFrame
        Columns formula, sigma_reference, sigma_model, sigma_model_error.
    title : str
    temperature_K : float or None
        For the axes; None where it is not known.
    """
    sigma = "σ" if temperature_K is None else f"σ({temperature_K:g} K)"
    figure, axes = _figure(4.6, 4.4)
    top = 1.05 * max(1.2, float(pairs[["sigma_reference", "sigma_model"]].to_numpy().max()))
    axes.plot([0, top], [0, top], color=NEUTRAL, linewidth=0.8)
    axes.axhline(SIGMA_UNSTABLE, color=IMAGINARY, linewidth=0.8, linestyle=(0, (4, 3)))
    axes.axvline(SIGMA_UNSTABLE, color=IMAGINARY, linewidth=0.8, linestyle=(0, (4, 3)))
    anions = pairs["formula"].map(_anion)
    size = 4.0 if len(pairs) <= MANY_POINTS else 2.5
    for colour, anion in zip(COLOURS, ANIONS, strict=False):
        group = pairs[anions == anion]
        if group.empty:
            continue
        axes.errorbar(
            group["sigma_reference"],
            group["sigma_model"],
            yerr=group["sigma_model_error"].fillna(0.0),
            fmt="o",
            markersize=size,
            markeredgewidth=0,
            color=colour,
            elinewidth=0.7,
            alpha=0.8,
            label=anion,
        )
    axes.set(xlim=(0, top), ylim=(0, top), xlabel=f"{sigma}, reference", ylabel=f"{sigma}, model", aspect="equal")
    axes.set_title(title, fontsize=9, loc="left")
    axes.legend(loc="lower right", handletextpad=0.2)
    return figure


def _anion(formula: str) -> str:
    elements = Formula(formula).count()
    return next((element for element in ANIONS if element in elements), "other")


@_styled
def sigma_figure(table: pd.DataFrame) -> Figure:
    """Distribution of sigma over materials: a dot for each, a median line, one row for each model."""
    models = list(dict.fromkeys(table["model"]))
    figure, axes = _figure(5.6, 1.1 + 0.75 * len(models))
    rng = np.random.default_rng(0)
    for index, model in enumerate(models):
        values = table.loc[table["model"] == model, "sigma_pooled"].dropna().to_numpy(dtype=np.float64)
        if not values.size:
            continue
        height = index + (rng.uniform(-0.28, 0.28, values.size) if values.size > 12 else np.zeros(values.size))
        colour = COLOURS[index % len(COLOURS)]
        axes.plot(values, height, "o", color=colour, markersize=5, alpha=0.75, markeredgewidth=0)
        axes.vlines(np.median(values), index - 0.38, index + 0.38, color=colour, linewidth=1.6)
    axes.axvline(SIGMA_UNSTABLE, color=IMAGINARY, linewidth=0.9, linestyle=(0, (4, 3)))
    top = max(1.15, 1.05 * float(table["sigma_pooled"].max(skipna=True) or 0.0))
    axes.set(
        xlim=(-0.02, top), ylim=(len(models) - 0.5, -0.5), xlabel="anharmonicity σ (pooled); upright lines: medians"
    )
    axes.set_yticks(range(len(models)), models)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return figure


@_styled
def bands_figure(
    curves: Sequence[tuple[str, Bands, DensityOfStates | None]], colours: Sequence[str] = COLOURS
) -> Figure:
    """Phonon bands (and density of states) of one material, one colour for each model; imaginary modes below zero.

    Parameters
    ----------
    curves : sequence of (model, Bands, DensityOfStates or None)
        Several models share the axes: their paths have the same special points, and are scaled to the same length.
    """
    figure = Figure(figsize=(4.0, 2.8), layout="constrained")
    axes, side = figure.subplots(1, 2, sharey=True, width_ratios=(4, 1))
    end = curves[0][1].ticks[-1][0]
    for colour, (model, lines, dos) in zip(colours, curves, strict=False):
        distance, frequency = _joined(lines)
        drawn = axes.plot(distance * (end / lines.ticks[-1][0]), frequency, color=colour, linewidth=0.8)
        if len(curves) > 1:
            drawn[0].set_label(model)
        if dos is not None:
            side.plot(dos.states_per_THz, dos.frequencies_THz, color=colour, linewidth=0.8)
    lowest = min(float(frequency.min()) for _, lines, _ in curves for frequency in lines.frequencies_THz)
    _dress_bands(axes, side, curves[0][1], imaginary=lowest < IMAGINARY_THZ)
    if len(curves) > 1:
        figure.legend(fontsize=7, loc="outside upper left", ncols=4, handlelength=1.2)
    return figure


def _joined(lines: Bands) -> tuple[Floats, Floats]:
    """Return the legs of a path as one, with a gap between them where the path jumps."""
    distances, frequencies = [], []
    jumps = {position for position, label in lines.ticks if "|" in label}
    for distance, frequency in zip(lines.distances, lines.frequencies_THz, strict=True):
        if distance[0] in jumps:
            distances.append(distance[:1])
            frequencies.append(np.full_like(frequency[:1], np.nan))
        distances.append(distance)
        frequencies.append(frequency)
    return np.concatenate(distances), np.concatenate(frequencies)


def _dress_bands(axes: Axes, side: Axes, lines: Bands, *, imaginary: bool) -> None:
    """Add special points, the zero line, a tint on imaginary frequencies, and names of axes."""
    for position, _ in lines.ticks:
        axes.axvline(position, color=NEUTRAL, linewidth=0.4)
    bottom = axes.get_ylim()[0]
    axes.set_ylim(bottom=bottom if imaginary else 0.0)
    for panel in (axes, side):
        panel.axhline(0.0, color=NEUTRAL, linewidth=0.8)
        if imaginary:
            panel.axhspan(bottom, 0.0, color=IMAGINARY, alpha=0.08, linewidth=0)
    axes.set(xlim=(0, lines.ticks[-1][0]), ylabel="frequency (THz)")
    axes.set_xticks([position for position, _ in lines.ticks], [label for _, label in lines.ticks], fontsize=8)
    axes.tick_params(axis="x", length=0)
    side.set_xticks([])
    side.set_xlim(left=0)
    side.set_xlabel("DOS")
    side.tick_params(axis="y", length=0)


@_styled
def labels_figure(table: pd.DataFrame) -> Figure:
    """Both stability labels in one picture: lowest frequency against sigma, with the quadrants named.

    Parameters
    ----------
    table : DataFrame
        Columns material, model, min_frequency_THz, sigma_pooled, sigma_pooled_error.
    """
    figure, axes = _figure(5.6, 3.6)
    known = table.dropna(subset=["min_frequency_THz", "sigma_pooled"])
    for index, model in enumerate(dict.fromkeys(table["model"])):
        group = known[known["model"] == model]
        axes.errorbar(
            group["min_frequency_THz"],
            group["sigma_pooled"],
            yerr=group["sigma_pooled_error"].fillna(0.0),
            fmt="o",
            color=COLOURS[index % len(COLOURS)],
            markersize=5,
            elinewidth=0.8,
            markeredgewidth=0,
            alpha=0.85,
            label=model,
        )
    if len(known) <= MAX_NAMED_POINTS:
        for _, row in known.iterrows():
            axes.annotate(
                row["material"],
                (row["min_frequency_THz"], row["sigma_pooled"]),
                xytext=(5, 4),
                textcoords="offset points",
                fontsize=7,
            )
    axes.axhline(SIGMA_UNSTABLE, color=IMAGINARY, linewidth=0.9, linestyle=(0, (4, 3)))
    axes.axvline(0.0, color=IMAGINARY, linewidth=0.9, linestyle=(0, (4, 3)))
    axes.set(xlabel="lowest frequency (THz); negative: imaginary", ylabel="anharmonicity σ")
    axes.set_ylim(0.0, max(1.25, axes.get_ylim()[1]))
    axes.margins(x=0.12)
    if table["model"].nunique() > 1:
        axes.legend(fontsize=8)
    return figure


@_styled
def running_figure(running: Sequence[tuple[str, Floats, Floats]]) -> Figure:
    """Sigma of each trajectory so far against time; `running` has (model, time_ps, sigma), a colour for each model."""
    figure, axes = _figure(5.6, 3.0)
    models = list(dict.fromkeys(model for model, _, _ in running))
    named: set[str] = set()
    for model, time, values in running:
        colour = COLOURS[models.index(model) % len(COLOURS)]
        label = None if model in named else model
        named.add(model)
        axes.plot(time, values, color=colour, linewidth=0.8, alpha=0.7, label=label)
    axes.axhline(SIGMA_UNSTABLE, color=IMAGINARY, linewidth=0.9, linestyle=(0, (4, 3)))
    axes.set(xlabel="time since the start of the trajectory (ps)", ylabel="running σ")
    axes.set_ylim(bottom=0.0)
    if len(models) > 1:
        axes.legend(fontsize=8)
    return figure
