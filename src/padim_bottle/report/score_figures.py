"""Figures of scores: a histogram with the thresholds on it, the confusion matrix; and what figures have in common.

Colours are Okabe and Ito's, and no figure needs them: markers, line styles and positions tell the same. Matplotlib's
``Figure`` is used directly: there is no state of pyplot, and figures may be drawn in any thread.
"""

from collections.abc import Sequence
from itertools import cycle
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, NullLocator, ScalarFormatter

from padim_bottle.evaluation.predictions import GOOD
from padim_bottle.report.reference_thresholds import Reference, reference_thresholds
from padim_bottle.runs.run import Run

BLACK, ORANGE, SKY, GREEN, BLUE, VERMILION, PURPLE = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
LINES = tuple(
    zip(
        (VERMILION, BLUE, GREEN, PURPLE, ORANGE, SKY),
        ("--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1))),
        "os^Dvp",
        strict=True,
    )
)
"""Colour, line style and marker of each of several things."""

Drawing = tuple[str, str, Figure] | None
"""Title, caption and figure; ``None`` where the run has nothing to draw."""


def plain(name: str) -> str:
    """Return a name from a file system as text that Matplotlib writes as it stands: '$' would begin a formula."""
    return "".join(c if c.isprintable() else "?" for c in name).replace("$", r"\$")


def is_skewed(scores: Sequence[float] | np.ndarray) -> bool:
    """Tell whether scores are better shown on a logarithmic scale: defects can score many times higher than good."""
    low, high = float(np.min(scores)), float(np.max(scores))
    return low > 0 and high > 5 * low


def draw_score_histogram(run: Run) -> Drawing:
    """Draw a histogram of each defect type, of good images and, below, of the training images left out in turn."""
    table = run.predictions
    counts = table["defect_type"].value_counts()
    rows = [(f"{counts[name]} {plain(name)}", table.loc[table["defect_type"] == name, "score"]) for name in run.defects]
    if GOOD in counts:
        rows.append((f"{counts[GOOD]} good", table.loc[~table["label"], "score"]))
    training = run.calibration_scores
    if len(training):
        rows.append((f"{len(training)} training images,\neach left out", training))
    if not rows:
        return None
    everything = np.concatenate([np.asarray(scores, dtype=float) for _, scores in rows])
    low, high = float(everything.min()), float(everything.max())
    logarithmic = is_skewed(everything)
    edges = np.geomspace(low, high * 1.001, 41) if logarithmic else np.linspace(low, high + 1e-9 + abs(high) * 1e-6, 41)
    figure = Figure(figsize=(8, 1.9 + 0.62 * len(rows)))
    height = figure.get_figheight()
    axes = figure.add_axes((0.2, 1.3 / height, 0.77, 1 - 1.6 / height))
    styles = dict(zip(run.defects, cycle(LINES), strict=False))
    for i, (label, scores) in enumerate(rows):
        base = len(rows) - 1 - i
        frequencies = np.histogram(scores, edges)[0]
        is_training = "left out" in label and i == len(rows) - 1 and len(training) > 0
        colour = styles[run.defects[i]][0] if i < len(run.defects) else ("0.75" if is_training else "0.45")
        top = base + 0.85 * frequencies / max(frequencies.max(), 1)
        axes.stairs(top, edges, baseline=base, fill=True, color=colour, alpha=0.75, zorder=2)
        axes.stairs(top, edges, baseline=base, color="0.15", linewidth=0.6, zorder=3)
        axes.axhline(base, color="0.4", linewidth=0.6)
    if logarithmic:
        scale_logarithmically(axes)
    axes.set(yticks=[len(rows) - 1 - i + 0.3 for i in range(len(rows))], yticklabels=[label for label, _ in rows])
    axes.set(ylim=(0, len(rows)), xlabel=f"anomaly score{' (logarithmic)' * logarithmic}")
    tidy(axes)
    axes.tick_params(axis="y", length=0)
    references = _merged(reference_thresholds(run)[0])
    for reference, (_, line, marker) in zip(references, cycle(LINES), strict=False):
        axes.axvline(reference.value, color=BLACK, linestyle=line, linewidth=1.1, zorder=4)
        axes.plot(
            reference.value, 1, marker=marker, color=BLACK, markersize=6, clip_on=False, zorder=5,
            transform=axes.get_xaxis_transform(), linestyle=line, label=f"{reference.name}: {reference.value:.2f}",
        )  # fmt: skip
    if references:
        axes.legend(
            loc="upper center", bbox_to_anchor=(0.4, -0.62 / (height - 1.6)), ncols=3, frameon=False, fontsize=8.5,
            handlelength=3,
        )  # fmt: skip
    caption = (
        "How anomalous the images are said to be, each type in a row of its own, every row scaled to its own "
        "highest bar. A threshold calls what lies on it and to its right anomalous. "
    )
    if len(training):
        caption += (
            "The lowest row is what the alpha thresholds come from: training images, each scored by the model fitted "
            "without it. It should look like the good test images."
        )
    return "Scores of the images", caption, figure


def draw_confusion_matrix(run: Run) -> Drawing:
    """Draw the confusion matrix at the run's own threshold, and the same for every defect type."""
    table = run.predictions
    if run.threshold is None or table.empty:
        return None
    called = table["score"].to_numpy() >= run.threshold
    labels, types = table["label"].to_numpy(bool), table["defect_type"].to_numpy()
    kinds = [("good", ~labels), ("defective", labels)]
    details = [("good", ~labels), *((plain(name), types == name) for name in run.defects)]
    figure = Figure(figsize=(8, max(3.2, 1.6 + 0.5 * len(details))))
    panels = figure.subplots(1, 2, gridspec_kw={"wspace": 0.75, "left": 0.12, "right": 0.97, "top": 0.78})
    for axes, rows, title in zip(panels, (kinds, details), ("Confusion matrix", "by type of defect"), strict=True):
        rows = [(name, chosen) for name, chosen in rows if chosen.any()]
        counts = np.array([[(~called & chosen).sum(), (called & chosen).sum()] for _, chosen in rows])
        shares = counts / counts.sum(axis=1, keepdims=True)
        axes.imshow(shares, cmap="Greys", vmin=0, vmax=2.2, aspect="auto")
        for (row, column), count in np.ndenumerate(counts):
            wrong = bool(((rows[row][0] == GOOD) == (column == 1)) and count)
            text = f"{count}\n{100 * shares[row, column]:.0f} %" + " wrong" * wrong
            axes.text(column, row, text, ha="center", va="center", weight="bold" if wrong else "normal")
            if wrong:
                box = Rectangle((column - 0.48, row - 0.46), 0.96, 0.92, fill=False, linewidth=2)
                box.set_edgecolor(VERMILION)
                axes.add_patch(box)
        axes.set(xticks=[0, 1], xticklabels=["called good", "called anomalous"], yticks=range(len(rows)))
        axes.set_yticklabels([name for name, _ in rows])
        axes.set_title(title, fontsize=11, pad=24, y=1.0)
        axes.tick_params(length=0, labeltop=True, labelbottom=False)
        axes.spines[:].set_visible(False)
    own = run.counts(run.threshold)
    caption = (
        f"At this run's own threshold, {run.threshold:.3f} ({run.metrics['thresholds']['source']}): "
        f"{own['true_positive']} of {labels.sum()} defective images are found, and {own['false_positive']} of "
        f"{(~labels).sum()} good ones raise a false alarm. What is wrong is in bold and framed."
    )
    return "Confusion matrix", caption, figure


def scale_logarithmically(axes: Axes) -> None:
    """Let the horizontal axis be logarithmic, with numbers as they are usually written."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_locator(NullLocator())


def tidy(axes: Axes, grid: Literal["x", "both"] = "x") -> None:
    """Draw faint lines behind what is shown, and no frame."""
    axes.grid(axis=grid, color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9)


def _merged(references: Sequence[Reference]) -> list[Reference]:
    """Name thresholds together that cannot be told apart in a picture."""
    merged: list[Reference] = []
    for reference in references:
        if merged and np.isclose(merged[-1].value, reference.value, rtol=1e-9):
            merged[-1] = merged[-1]._replace(name=f"{merged[-1].name}, {reference.name}")
        else:
            merged.append(reference)
    return merged
