"""The sections of the report, each a piece of HTML."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from typing import Any

import numpy as np
import pandas as pd

from analysis.html import (
    counted_label,
    definitions,
    duration,
    folded,
    label,
    number_cell,
    number_heading,
    table,
    text_cell,
    tile,
)
from analysis.record import CampaignRecord
from analysis.reduce import Reduction
from analysis.settings import REDUCED_STAGES
from analysis.tables import LABEL_STYLES, imaginary_modes, label_text, lowest_frequency, remark
from driver.archive.reader import FailureRow


@dataclass(frozen=True)
class Card:
    """A material's bands: key, space group, conventional lattice constant in angstrom, the figure's HTML."""

    material: str
    space_group: str
    a_A: float
    figure: str


def heading(record: CampaignRecord, reduction: Reduction) -> str:
    """Title, what the campaign is, and links to the sections."""
    materials = reduction.table["material"].nunique()
    models = ", ".join(record.models)
    planned = ", ".join(reduction.campaign.stages)
    links = [
        ("summary", "Summary"),
        ("stability", "Stability"),
        ("anharmonicity", "Anharmonicity"),
        ("phonons", "Phonons"),
        ("failures", "Failures"),
        ("methods", "Methods"),
        ("provenance", "Provenance"),
    ]
    return (
        f"<h1>{escape(record.header.campaign)}</h1>\n"
        f'<p class="lead">Lattice-dynamics campaign: {_plural(materials, "material")} with {escape(models)}; '
        f"stages {escape(planned)}.</p>\n<nav>"
        + "".join(f'<a href="#{name}">{text}</a>' for name, text in links)
        + "</nav>"
    )


def summary(record: CampaignRecord, reduction: Reduction) -> str:
    """Tiles with the campaign's figures, and for each model how the labels came out."""
    states = reduction.states.values()
    finished = sum(all(status in ("done", "not planned") for status in state.stages.values()) for state in states)
    failed = sum(any(status in ("failed", "quarantined") for status in state.stages.values()) for state in states)
    done = sum(count for count, _ in record.stage_seconds.values())
    work = sum(seconds for _, seconds in record.stage_seconds.values())
    span = record.last_s - record.first_s
    tiles = [
        tile(str(reduction.table["material"].nunique()), "materials"),
        tile(str(len(record.models)), "models"),
        tile(f"{finished} / {len(reduction.states)}", "finished (material × model)"),
        tile(str(failed), "failed", bad=failed > 0),
        *([tile(str(len(record.refused)), "materials refused", bad=True)] if record.refused else []),
        tile(str(done), "tasks committed"),
        tile("–" if np.isnan(span) else duration(span), "from first task to last commit"),
        tile(duration(work), "of workers' time"),
    ]
    return f'<section id="summary"><div class="tiles">{"".join(tiles)}</div>\n{_verdicts(reduction.table)}</section>'


def _verdicts(metrics: pd.DataFrame) -> str:
    """Count both labels for each model, and where they disagree: they answer different questions."""
    rows = []
    for model, group in metrics.groupby("model", sort=False):
        harmonic, anharmonic = group["harmonically_stable"], group["anharmonically_stable"]
        yet = int((~harmonic & anharmonic).fillna(False).sum())
        rows.append(
            [
                text_cell(model, "key"),
                f"<td>{_counts(harmonic)}</td>",
                f"<td>{_counts(anharmonic)}</td>",
                number_cell(yet, 0),
                number_cell(group["sigma_pooled"].median(), 3),
            ]
        )
    headings = [
        "<th>model</th>",
        "<th>harmonic</th>",
        "<th>anharmonic</th>",
        number_heading("harmonically unstable, yet σ < 1"),
        number_heading("median σ"),
    ]
    return table(headings, rows)


def _counts(labels: pd.Series) -> str:
    verdicts = Counter(label_text(value) for value in labels)
    return " ".join(counted_label(text, verdicts[text]) for text in LABEL_STYLES if verdicts[text])


def stability(reduction: Reduction) -> str:
    """The table of both labels, one row for each material and model."""
    tolerance = f"{reduction.settings.tolerance_THz:g}".replace("-", "−")
    rows = [_stability_row(row) for row in reduction.table.to_dict("records")]
    headings = [
        "<th>material</th>",
        "<th>model</th>",
        "<th>group</th>",
        number_heading("a", "Å", "Lattice constant of the conventional cell"),
        number_heading("lowest mode, supercell", "THz", "Lowest vibration on the q points that fit the supercell"),
        number_heading("lowest mode, mesh", "THz", "Lowest vibration on the mesh"),
        "<th>harmonic</th>",
        '<th title="Modes below the tolerance">imaginary modes</th>',
        number_heading("σ", "", "Pooled anharmonicity, with its block error"),
        number_heading("σ per frame", "", "Ratio within each frame, averaged"),
        "<th>anharmonic</th>",
        number_heading("T", "K", "Mean temperature after equilibration"),
        "<th>remark</th>",
    ]
    return (
        '<section id="stability"><h2>Stability</h2>\n'
        f"<p>Two labels that answer different questions. <b>Harmonic</b>: no vibration below {tolerance} THz, neither "
        "on the q points that fit the supercell nor on a mesh. <b>Anharmonic</b>: σ(300 K) &lt; 1 in a valid run. A "
        "run that failed or is not valid leaves its label undecided, as does a σ whose error is not converged or that "
        "is within two errors of 1; none of these counts as unstable. Rest the pointer on "
        "a label for its reason; click on a heading to sort. All columns are in "
        '<a href="metrics.csv">metrics.csv</a>.</p>\n'
        '<div class="filter"><label for="filter">Filter</label><input id="filter" type="search" '
        'placeholder="e.g. Br unstable" data-filters="stability-table"><output></output></div>\n'
        + table(headings, rows, identifier="stability-table", kind="sortable")
        + "</section>"
    )


def _stability_row(row: Mapping[Any, Any]) -> list[str]:
    return [
        text_cell(row["material"], "key"),
        text_cell(row["model"], "whole"),
        text_cell(row["space_group_symbol"] or "–", "whole"),
        number_cell(row["conventional_a_A"], 3),
        number_cell(row["min_frequency_commensurate_THz"], 2),
        number_cell(row["min_frequency_mesh_THz"], 2),
        f"<td>{label(row['harmonically_stable'], row['harmonic_reason'])}</td>",
        _imaginary_cell(row),
        number_cell(row["sigma_pooled"], 3, row["sigma_pooled_error"]),
        number_cell(row["sigma_frame_mean"], 3),
        f"<td>{label(row['anharmonically_stable'], row['anharmonic_reason'])}</td>",
        number_cell(row["temperature_K"], 0),
        text_cell(_short(remark(row)), "wide"),
    ]


def _imaginary_cell(row: Mapping[Any, Any]) -> str:
    """Return a cell that says which modes are imaginary, and sorts by how many of the mesh they are."""
    fraction = row["imaginary_modes_fraction"]
    value = "" if pd.isna(fraction) else f"{fraction:.6g}"
    return f'<td data-value="{value}">{escape(imaginary_modes(row))}</td>'


def anharmonicity(figures: Sequence[str]) -> str:
    """Figures of sigma over all materials: the first on the right, the others in a column on the left."""
    content = '<p class="note">No trajectory has been reduced yet.</p>'
    if figures:
        content = f'<div class="stack">{"".join(figures[1:])}</div>{figures[0]}'
    return f'<section id="anharmonicity"><h2>Anharmonicity</h2>\n<div class="columns wide">{content}</div></section>'


def phonons(cards: Sequence[Card], omitted: Sequence[str]) -> str:
    """Bands and densities of states, a card for each material."""
    shown = "\n".join(_card(card) for card in cards)
    note = ""
    if omitted:
        names = ", ".join(omitted[:20]) + (" …" if len(omitted) > 20 else "")
        note = (
            f'<p class="note">Not shown, to keep this page quick: {_plural(len(omitted), "further material")} '
            f"({escape(names)}). <code>python -m analysis export … --to phonopy</code> writes what phonopy plots.</p>"
        )
    content = f'<div class="columns cards">{shown}</div>' if cards else '<p class="note">No force constants yet.</p>'
    return (
        '<section id="phonons"><h2>Phonons</h2>\n'
        "<p>Harmonic bands and densities of states at the relaxed geometry, without "
        "the long-range dipole term. Imaginary frequencies are drawn below zero, on the tinted ground.</p>\n"
        f"{content}\n{note}</section>"
    )


def _card(card: Card) -> str:
    lattice = "" if pd.isna(card.a_A) else f" · a = {card.a_A:.3f} Å"
    return (
        f'<div class="card"><header><h3>{escape(card.material)}</h3>'
        f'<span class="fine">{escape(card.space_group)}{lattice}</span></header>{card.figure}</div>'
    )


def card_caption(rows: Sequence[Mapping[Any, Any]]) -> str:
    """Return what stands below a material's bands: for each model minimum frequency, worst q, sigma by site."""
    lines = []
    for row in rows:
        if pd.isna(row["min_frequency_mesh_THz"]):
            continue
        minimum = lowest_frequency(row)
        where = f"at q = ({escape(row['worst_q'])})" if minimum < 0.0 else "on the supercell's q points"
        lowest = f"{minimum:.2f}".replace("-", "−")
        text = f"<b>{escape(row['model'])}</b>: lowest mode {lowest} THz {where}"
        if not pd.isna(row["sigma_pooled"]):
            text += f"; σ {row['sigma_pooled']:.3f} ({escape(_two_digits(row['sigma_sites']))})"
        lines.append(text)
    return "<br>".join(lines)


def _two_digits(by_site: str) -> str:
    parts = (part.rpartition(": ") for part in by_site.split("; "))
    return ", ".join(f"{site} {float(value):.2f}" for site, _, value in parts)


def failures(record: CampaignRecord, reduction: Reduction) -> str:
    """What went wrong: tasks that were given up or wait for another attempt, and results that could not be reduced."""
    open_tasks = {
        (material, model, stage): status
        for (material, model), state in reduction.states.items()
        for stage, status in state.stages.items()
        if status in ("failed", "quarantined")
    }
    last = {(f.key.material, f.key.model, f.key.stage): f for f in record.failures}
    rows = [
        _failure_row(last[key], status, reduction.states[key[0], key[1]].stages)
        for key, status in open_tasks.items()
        if key in last
    ]
    mended = len({(f.key, f.attempt) for f in record.failures}) - len(rows)
    unreduced = [(r.material, r.model, problem) for r in reduction.results.values() for problem in r.problems]
    parts = ['<section id="failures"><h2>Failures</h2>']
    if rows:
        headings = ("material", "model", "stage", "attempt", "state", "what happened", "where")
        parts.append(table([f"<th>{text}</th>" for text in headings], rows))
    else:
        parts.append("<p>No task has failed for good.</p>")
    if mended > 0:
        parts.append(
            f'<p class="note">{_plural(mended, "further failed attempt")} came before these, or was mended.</p>'
        )
    if record.refused:
        parts.append("<h3>Materials that could not be used</h3>")
        lines = [[text_cell(r.key, "key"), text_cell(r.source), text_cell(r.message)] for r in record.refused]
        parts.append(table(["material", "source", "why"], lines))
    if unreduced:
        parts.append("<h3>Results that could not be reduced</h3>")
        parts.append(table(["material", "model", "why"], [[text_cell(text) for text in line] for line in unreduced]))
    return "\n".join([*parts, "</section>"])


def _failure_row(failure: FailureRow, status: str, stages: Mapping[str, str]) -> list[str]:
    key = failure.key
    stage = f"{key.stage}, segment {key.segment}" if key.stage == "dynamics" else key.stage
    nothing = all(state not in ("done", "partial") for state in stages.values())
    state = {"failed": "to be tried again", "quarantined": "given up"}[status]
    return [
        text_cell(key.material, "key"),
        text_cell(key.model),
        text_cell(stage),
        text_cell(failure.attempt, "number"),
        text_cell(state + (", no results" if nothing else "")),
        f'<td class="wide"><b>{escape(failure.exception)}</b>: {escape(failure.message)}'
        f"{folded('traceback', failure.traceback) if failure.traceback else ''}</td>",
        text_cell(f"rank {failure.rank}, {failure.device}, {failure.host}"),
    ]


def methods(reduction: Reduction) -> str:
    """Conventions and settings behind the figures."""
    settings, campaign, validity = reduction.settings, reduction.campaign, reduction.settings.validity

    def angstrom(value: float | None) -> str:
        return "the only set there is" if value is None else f"{value:g} Å"

    equilibration = "not known" if campaign.equilibration_ps is None else f"{campaign.equilibration_ps:g} ps"
    temperature = "not known" if campaign.temperature_K is None else f"{campaign.temperature_K:g} K"
    return (
        '<section id="methods"><h2>Methods</h2>\n<ul>'
        "<li>u = R − R<sub>0</sub> by minimum image, R<sub>0</sub> the static supercell, centre of mass fixed; "
        "F<sub>A</sub> = F + Φu with the full force-constant matrix Φ. <b>σ</b> = std(F<sub>A</sub>)/std(F) pooled "
        "over frames, atoms and components (Knoop et al., Phys. Rev. Materials 4, 083809 (2020)); <b>σ per frame</b> "
        "takes the ratio within each frame and averages. Errors are block errors (Flyvbjerg and Petersen, 1989).</li>"
        "<li>Frequencies are signed: negative means imaginary. The three rigid translations at Γ are left out of "
        "minima and counts. Thermal properties are given only for harmonically stable crystals.</li>"
        f"<li>A run is valid if its mean temperature is within {100 * validity.temperature_tolerance:g} % of the "
        f"target, both halves agree within {100 * validity.halves_tolerance:g} %, every site within "
        f"{100 * validity.site_tolerance:g} % (each beyond three standard errors), production lasts at least "
        f"{validity.min_production_ps:g} ps, and, for NVE, energy drifts by less than "
        f"{validity.max_energy_drift_meV_atom_ps:g} meV/atom/ps.</li></ul>"
        + definitions(
            {
                "Dynamics": f"{campaign.ensemble or 'not known'} at {temperature}; first {equilibration} dropped",
                "Displacements for σ": angstrom(campaign.sigma_distance_A),
                "Displacements for phonons": angstrom(campaign.bands_distance_A),
                "Imaginary below": f"{settings.tolerance_THz:g} THz",
                "Mesh of q points": f"length {settings.mesh_length_A:g} Å, Γ-centred, even",
            }
        )
        + "</section>"
    )


def provenance(record: CampaignRecord) -> str:
    """Models, versions, where the time went, the whole configuration."""
    header = record.header
    models = [
        [
            text_cell(m.key, "key"),
            text_cell(m.file),
            f'<td class="wide"><code>{escape(m.sha256)}</code></td>',
            text_cell(m.head or "–"),
            text_cell(m.training_data or "–"),
            text_cell(m.licence or "–"),
        ]
        for m in record.models.values()
    ]
    stages = [
        [text_cell(stage, "key"), number_cell(count, 0), number_cell(seconds, 1)]
        for stage, (count, seconds) in sorted(record.stage_seconds.items(), key=lambda item: _order(item[0]))
    ]
    devices = [[text_cell(device), number_cell(seconds, 1)] for device, seconds in record.devices.items()]
    last = "–" if np.isnan(record.last_s) else f"{datetime.fromtimestamp(record.last_s, UTC):%Y-%m-%d %H:%M} UTC"
    facts = {"Campaign": header.campaign, "Seed": header.seed, "Archive format": header.format_version}
    facts |= {"Created": header.created, "Last commit": last}
    time = number_heading("time", "s")
    return "\n".join(
        [
            '<section id="provenance"><h2>Provenance</h2>',
            definitions(facts | dict(header.versions)),
            "<h3>Models</h3>",
            table(["key", "file", "sha256", "head", "training data", "licence"], models),
            "<h3>Workers' time</h3>",
            '<div class="columns">',
            table(["stage", number_heading("tasks"), time], stages),
            table(["device", time], devices),
            "</div>",
            folded("Configuration", header.config_yaml),
            f"</section>\n<footer>{escape(header.campaign)}, reduced by Latdyn. Figures as files: "
            "<code>figures/</code>; metrics: <code>metrics.csv</code>.</footer>",
        ]
    )


def _order(stage: str) -> int:
    return REDUCED_STAGES.index(stage) if stage in REDUCED_STAGES else len(REDUCED_STAGES)


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _short(text: str, limit: int = 160) -> str:
    return text if len(text) <= limit else text[: limit - 1].rstrip() + "…"
