"""Small pieces of HTML. Every text that comes from outside passes through `escape`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import pandas as pd

from analysis.plots import NEUTRAL
from analysis.tables import label_text


def label(value: Any, reason: str = "") -> str:
    """Return a coloured label that also says its verdict in words; the reason shows on hovering."""
    text = label_text(value)
    title = f' title="{escape(reason)}"' if reason else ""
    return f'<span class="label {text}"{title}>{text}</span>'


def counted_label(text: str, count: int) -> str:
    """Return a coloured label with the number of crystals that bear it."""
    return f'<span class="label {text}">{count} {text}</span>'


def number_cell(value: Any, digits: int, error: Any = None) -> str:
    """Return a right-aligned table cell that sorts by its value, with the error in softer type."""
    if value is None or pd.isna(value):
        return '<td class="number" data-value="">–</td>'
    text = f"{value:.{digits}f}".replace("-", "−")
    if error is not None and not pd.isna(error):
        text += f' <span class="error">± {error:.{digits}f}</span>'
    return f'<td class="number" data-value="{value:.10g}">{text}</td>'


def text_cell(value: Any, kind: str = "") -> str:
    """Return a table cell of text."""
    attribute = f' class="{kind}"' if kind else ""
    return f"<td{attribute}>{escape(str(value))}</td>"


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, identifier: str = "", kind: str = "") -> str:
    """Return a table in a box that scrolls sideways where it must; headings are HTML, cells HTML with their <td>."""
    name = f' id="{identifier}"' if identifier else ""
    style = f' class="{kind}"' if kind else ""
    heads = "".join(heading if heading.startswith("<th") else f"<th>{heading}</th>" for heading in headings)
    body = "\n".join(f"<tr>{''.join(cells)}</tr>" for cells in rows)
    head = f"<thead><tr>{heads}</tr></thead>"
    return f'<div class="scroll"><table{name}{style}>{head}\n<tbody>\n{body}\n</tbody></table></div>'


def number_heading(text: str, unit: str = "", title: str = "") -> str:
    """Return a right-aligned heading with its unit in softer type."""
    units = f' <span class="unit">({escape(unit)})</span>' if unit else ""
    hint = f' title="{escape(title)}"' if title else ""
    return f'<th class="number"{hint}>{escape(text)}{units}</th>'


def definitions(entries: Mapping[str, Any]) -> str:
    """Return a list of terms and their values."""
    return "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(str(v))}</dd>" for k, v in entries.items()) + "</dl>"


def folded(summary: str, text: str) -> str:
    """Return preformatted text that is folded away until asked for."""
    return f"<details><summary>{escape(summary)}</summary><pre>{escape(text)}</pre></details>"


def tile(value: str, caption: str, *, bad: bool = False) -> str:
    """Return a figure of the summary with its caption."""
    return f'<div class="tile{" bad" if bad else ""}"><b>{escape(value)}</b><span>{escape(caption)}</span></div>'


def inline_figure(svg: str, prefix: str, caption: str = "") -> str:
    """Return an SVG as a figure of the page.

    Identifiers get a prefix, so that those of several figures do not collide; coordinates are rounded to a hundredth
    of a point; axes and texts take the page's colour.
    """
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}-\1"', svg)
    svg = re.sub(r'(url\(#|xlink:href="#)', rf"\1{prefix}-", svg)
    svg = re.sub(r"(\d+\.\d{2})\d+", r"\1", svg)
    svg = svg.replace(NEUTRAL, "currentColor")
    words = f"<figcaption>{caption}</figcaption>" if caption else ""
    return f"<figure>{svg}{words}</figure>"


def duration(seconds: float) -> str:
    """Return a time span in the two largest units that fit: `3 h 12 min`, `4 min 07 s`, `12.3 s`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"
