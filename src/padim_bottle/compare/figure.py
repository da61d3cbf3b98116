"""The comparison of experiments in a picture: ``comparison.png``."""

from itertools import cycle

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from padim_bottle.compare.markdown import display_names, is_comparable, is_real
from padim_bottle.compare.statistics import summarise
from padim_bottle.evaluation.metrics import headings, labels
from padim_bottle.report.published import PUBLISHED
from padim_bottle.report.score_figures import LINES, plain


def draw_comparison(table: pd.DataFrame) -> Figure:
    """Draw a dot for each run, mean and 95 % interval of each experiment, and published figures below them."""
    real = is_real(table)
    # What is not real would only stretch the axes.
    drawn = table[real] if real.any() else table
    names = display_names(drawn)
    published = PUBLISHED if is_comparable(drawn).any() else ()
    summary = summarise(drawn).set_index(["experiment", "metric"])
    metrics = [metric for metric in headings(sees_labels=False) if drawn[metric].notna().any()] or ["image_AUROC"]
    # An experiment's row is as high as two of published figures.
    heights = [*(2 * i + 0.5 for i in range(len(names))), *(2 * len(names) + i for i in range(len(published)))]
    bottom = 2 * len(names) + len(published) - 0.5
    rows = -(-len(metrics) // 2)
    figure = Figure(figsize=(10.2, 1 + rows * (0.45 + 0.22 * bottom)), layout="constrained")
    panels = figure.subplots(rows, 2, sharey=True, squeeze=False)
    for axes in panels.flat[len(metrics) :]:
        axes.set_axis_off()
    for metric, axes in zip(metrics, panels.flat, strict=False):
        tuned = "\n(published: tuned on the test labels)" if published and metric == "image_F1Score" else ""
        axes.set_title(labels()[metric] + tuned, fontsize=10)
        axes.locator_params(axis="x", nbins=5)
        axes.ticklabel_format(axis="x", useOffset=False)
        axes.grid(axis="x", color="0.9", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=9, length=0)
        axes.spines[["top", "right", "left"]].set_visible(False)
        for experiment, y, (colour, *_) in zip(names, heights, cycle(LINES), strict=False):
            values = drawn.loc[drawn["experiment"] == experiment, metric].dropna().to_numpy()
            if len(values):
                _draw_runs(axes, values, summary.loc[(experiment, metric)], y, colour)
        for row, y in zip(published, heights[len(names) :], strict=True):
            value = getattr(row, "image_F1Score_anomalib" if metric == "image_F1Score" else metric, None)
            if value is not None:
                axes.plot(value, y, marker="D", markersize=4.5, color="0.55", markerfacecolor="none")
    first = panels[0, 0]
    first.set_ylim(bottom, -0.5)
    others = [", ".join(filter(None, (row.source, row.backbone))) for row in published]
    first.set_yticks(heights, [plain(name) for name in (*names.values(), *others)])
    for axes in panels[:, 0]:
        for label in axes.get_yticklabels()[len(names) :]:
            label.set(color="0.35", fontsize=8)
    key = "dot: one run; bar: mean over seeds and its 95 % t interval" + "; diamond: published" * bool(published)
    omitted = [plain(name) for name in display_names(table).values() if name not in names.values()]
    if omitted:
        key += f"\nnot drawn: {', '.join(omitted)}"
    figure.supxlabel(key, fontsize=9, color="0.35")
    return figure


def _draw_runs(axes: Axes, values: np.ndarray, row: pd.Series, y: float, colour: str) -> None:
    """Draw the runs of one experiment above the mean and its interval, each run at a height of its own."""
    axes.scatter(values, y - 0.7 + (np.arange(len(values)) + 0.5) / len(values), s=14, color=colour, linewidths=0)
    axes.plot([row["low"], row["high"]], [y + 0.55] * 2, color=colour, linewidth=2)  # nothing for one run
    axes.plot(row["mean"], y + 0.55, marker="|", markersize=10, markeredgewidth=2, color=colour)
