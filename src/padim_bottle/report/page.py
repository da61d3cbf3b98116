"""What the pages of a run and of a sweep have in common: tables, warnings, and one file that holds everything."""

import base64
import hashlib
from pathlib import Path
from typing import Any

import cv2
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from padim_bottle.figures.panels import Picture
from padim_bottle.report.published import PUBLISHED

TEMPLATES = Path(__file__).parent / "templates"

METRICS_NOTE = (
    "AUPRO: to a false positive rate of 0.3. F1: at the run's own threshold. F1Max and anomalib's F1: their threshold "
    "has seen the test labels, as those of published figures have."
)
COLUMNS = {
    "image_AUROC": "image AUROC",
    "pixel_AUROC": "pixel AUROC",
    "pixel_AUPRO": "AUPRO",
    "image_F1Score": "F1",
    "image_F1Max": "F1Max",
    "image_F1Score_anomalib": "anomalib's F1",
}
SYNTHETIC = {
    "title": "Synthetic images.",
    "text": "These bottles were drawn by a program. No figure here says anything about MVTec AD.",
}
RANDOM_WEIGHTS = {
    "title": "Random weights.",
    "text": "The backbone was never trained. No figure here says anything about PaDiM.",
}

_JPEG_QUALITY = 80


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


def jpeg_source(pixels: Picture) -> str:
    """Return a picture, in BGR as OpenCV has it, as a JPEG within an address."""
    _, encoded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    return data_source("image/jpeg", encoded.tobytes())


def data_source(kind: str, content: bytes) -> str:
    """Return content of a media type as an address that holds it."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def spell(value: float | None) -> str:
    """Return a figure as text, a dash where it is undefined."""
    # NaN, of all numbers, does not equal itself.
    return "–" if value is None or value != value else f"{value:.4f}"


def metrics_table(rows: list[dict[str, Any]], comparable: bool) -> dict[str, Any]:
    """Return the table of ``COLUMNS``: rows of ours, and the published ones where those compare."""
    if comparable:
        # Published F1 figures are anomalib's.
        rows = rows + [
            {"name": row.source, "cells": [*map(spell, row[1:4]), "–", "–", spell(row.image_F1)]} for row in PUBLISHED
        ]
    return {"label": "Metrics", "header": ["", *COLUMNS.values()], "rows": rows}
