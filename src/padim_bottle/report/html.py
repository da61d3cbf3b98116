"""What the pages of a run and of a sweep have in common: tables, warnings, and one file that holds everything."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from padim_bottle.report.published import PUBLISHED

TEMPLATES = Path(__file__).parent / "templates"

COLUMNS = {
    "image_AUROC": "image AUROC",
    "pixel_AUROC": "pixel AUROC",
    "pixel_AUPRO": "AUPRO",
    "pixel_AUPIMO": "AUPIMO",
    "image_F1Score": "F1, no defect seen",
    "image_F1Max": "F1Max",
    "image_F1Score_anomalib": "anomalib's F1Score",
}
"""The metrics of a table that compares, and what it calls them."""

AUPIMO_NOTE = (
    "AUPIMO: how much of a defect is found, image by image, while only 1 in 100,000 to 1 in 10,000 pixels of good "
    "images light up."
)
METRICS_NOTE = (
    f"AUPRO: to a false positive rate of 0.3. {AUPIMO_NOTE} F1, no defect seen: the threshold is from training images. "
    "F1Max and anomalib's F1Score are tuned on the test labels, as all published F1 figures are: compare those with "
    "the last column."
)
SYNTHETIC = {
    "title": "Synthetic images.",
    "text": "These bottles were drawn by a program. No figure here says anything about MVTec AD.",
}
RANDOM_WEIGHTS = {
    "title": "Random weights.",
    "text": "The backbone was never trained. No figure here says anything about PaDiM.",
}


class OwnRow(NamedTuple):
    """A row of our own figures: its name, backbone and size of images, and a text for each column of metrics."""

    name: str
    setup: str
    cells: Sequence[str]


def comparison_rows(
    own: Sequence[OwnRow], comparable: bool, columns: Mapping[str, str] = COLUMNS, dash: str = "–"
) -> tuple[list[str], list[dict[str, Any]], list[str]]:
    """Lay our figures out above the published ones.

    Args:
        own: our rows.
        comparable: whether published figures stand beside these.
        columns: metrics, as ``metrics.json`` names them, and their headings.
        dash: what stands for a figure that is not defined or not given.

    Returns:
        The header, the rows (name, cells, own) and the footnotes, whose numbers stand behind the names.
    """
    header = ["", "backbone, px", *columns.values()]
    rows: list[dict[str, Any]] = [{"name": row.name, "cells": [row.setup, *row.cells], "own": True} for row in own]
    notes: list[str] = []
    for row in PUBLISHED if comparable else ():
        name = row.source
        if row.protocol:
            if row.protocol not in notes:
                notes.append(row.protocol)
            name += f" [{notes.index(row.protocol) + 1}]"
        setup = ", ".join(filter(None, (row.backbone, row.size)))
        cells = [spell(getattr(row, metric, None), dash) for metric in columns]
        rows.append({"name": name, "cells": [setup, *cells], "own": False})
    return header, rows, [f"[{number}] {note}." for number, note in enumerate(notes, 1)]


def metrics_table(own: Sequence[OwnRow], comparable: bool) -> dict[str, Any]:
    """Return the same as a table of a page."""
    header, rows, notes = comparison_rows(own, comparable)
    return {"label": "Metrics", "header": header, "rows": rows, "notes": notes}


def describe_setup(weights: str, image_size: Sequence[int] | None) -> str:
    """Return backbone and size of the images as a table names them."""
    sides = dict.fromkeys(image_size or ())
    return ", ".join(filter(None, (weights.split(".")[0], " x ".join(map(str, sides)))))


def demonstration_warnings(synthetic: bool, random_weights: bool) -> list[dict[str, str]]:
    """Return what must be said loudly of images or weights that are not real."""
    return [SYNTHETIC] * synthetic + [RANDOM_WEIGHTS] * random_weights


def render_page(template: str, *, script: str, **content: Any) -> str:
    """Return a page with its style and its script within it; no other script can run there.

    Args:
        template: name of the template.
        script: JavaScript, or nothing.
        content: what the template shows; all of it is escaped.
    """
    style = read_template("report.css")
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template(template).render(
        style=Markup(style), style_hash=_hash(style), script=Markup(script), script_hash=_hash(script), **content
    )  # fmt: skip


def read_template(name: str) -> str:
    """Return a file of the templates, which are part of this package."""
    return (TEMPLATES / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """Name a script or style as a content security policy does."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def data_source(kind: str, content: bytes) -> str:
    """Return content of a media type as an address that holds it."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def spell(value: float | None, dash: str = "–") -> str:
    """Return a figure as text, a dash where it is undefined."""
    # NaN, of all numbers, does not equal itself.
    return dash if value is None or value != value else f"{value:.4f}"
