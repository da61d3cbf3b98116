"""The figures of a run: what it ranks well, where its thresholds lie, what it learned of good images.

Everything is drawn from the run's files, so figures can be drawn again at any time.
"""

import html
import io
import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from padim_bottle.files import write_whole
from padim_bottle.heat import encode_png
from padim_bottle.report.curve_figures import draw_precision_recall, draw_pro_curve, draw_roc
from padim_bottle.report.photo_figures import draw_began_with, draw_calibration_maps, draw_hardest_images
from padim_bottle.report.score_figures import Drawing, draw_confusion_matrix, draw_score_histogram
from padim_bottle.runs.run import Run

logger = logging.getLogger(__name__)

FIGURES: dict[str, Callable[[Run], Drawing]] = {
    "roc": draw_roc,
    "precision_recall": draw_precision_recall,
    "score_histogram": draw_score_histogram,
    "confusion_matrix": draw_confusion_matrix,
    "pro_curve": draw_pro_curve,
    "calibration_maps": draw_calibration_maps,
    "hardest_images": draw_hardest_images,
    "began_with": draw_began_with,
}

_DPI = 120
_SAVING = threading.Lock()


class RunFigure(NamedTuple):
    """A figure, and the words that belong to it."""

    name: str
    title: str
    caption: str
    figure: Figure


def draw_figures(run: Run) -> list[RunFigure]:
    """Draw every figure that a run has the data for; one that fails is left out with a warning."""
    figures = []
    for name, draw in FIGURES.items():
        try:
            drawing = draw(run)
        except Exception as error:  # of any kind: the other figures are still drawn
            logger.warning("The figure %s could not be drawn: %s: %s.", name, type(error).__name__, error)
            continue
        if drawing is not None:
            figures.append(RunFigure(name, *drawing))
    return figures


def save_figures(figures: Sequence[RunFigure], folder: Path) -> None:
    """Write each figure as ``<name>.png`` and ``<name>.svg``, and all captions to ``captions.md``.

    Figures of an earlier time that are not among these are removed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = {"captions.md"}
    for figure in figures:
        for kind in ("png", "svg"):
            write_whole(folder / f"{figure.name}.{kind}", render(figure.figure, kind))
            written.add(f"{figure.name}.{kind}")
    captions = [f"## {figure.title}\n\n![]({figure.name}.png)\n\n{html.escape(figure.caption)}\n" for figure in figures]
    write_whole(folder / "captions.md", "\n".join(["# Figures of this run\n", *captions]))
    for name in FIGURES:
        for kind in ("png", "svg"):
            if f"{name}.{kind}" not in written:
                (folder / f"{name}.{kind}").unlink(missing_ok=True)


def render(figure: Figure, kind: str) -> bytes:
    """Return the bytes of a figure as ``png`` or ``svg``: the same bytes for the same figure."""
    if kind == "png":
        figure.set_dpi(_DPI)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        return encode_png(np.ascontiguousarray(np.asarray(canvas.buffer_rgba())[..., :3]))
    buffer = io.BytesIO()
    # No random names; the settings are the process's.
    with _SAVING, matplotlib.rc_context({"svg.hashsalt": "padim_bottle"}):
        figure.savefig(buffer, format="svg", dpi=_DPI, metadata={"Date": None})
    return buffer.getvalue()
