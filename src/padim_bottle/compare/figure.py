"""The comparison of experiments in a picture: ``comparison.png``."""

from itertools import cycle
from string import ascii_lowercase

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from padim_bottle.compare.markdown import display_names, is_comparable, is_real
from padim_bottle.evaluation.metrics import labels
from padim_bottle.report.published import PUBLISHED
from padim_bottle.report.score_figures import LINES, plain, scale_logarithmically, tidy

CAPTION = (
    "Each dot is a run, each large marker the mean over seeds. AUPRO and AUPIMO are the pair that tells methods apart; "
    "time and memory are those of whole runs that took no features from another. What overlaps is not told apart; all "
    "figures stand in the tables."
)
_COSTS = {"seconds_total": "whole run, s", "memory": "memory of the largest process, GB"}


def draw_comparison(table: pd.DataFrame) -> Figure:
    """Draw the pair of metrics that tells methods apart, and what it costs: a dot for each run, a marker for each mean.

    AUPRO stands against AUPIMO, with the published figures that have both, and against time and memory; where no pixel
    metrics are, image AUROC against the costs alone.
    """
    real = is_real(table)
    # What is not real would only stretch the axes.
    drawn = table[real] if real.any() else table
    names = display_names(drawn)
    alone = drawn["features_from_seed"].isna()
    memory = drawn[["peak_memory_bytes", "peak_worker_memory_bytes"]].astype(float).max(axis=1) / 1e9
    drawn = drawn.assign(memory=memory.where(alone), seconds_total=drawn["seconds_total"].where(alone))
    quality = "pixel_AUPRO" if drawn["pixel_AUPRO"].notna().any() else "image_AUROC"
    across = {"pixel_AUPIMO": labels()["pixel_AUPIMO"], **_COSTS}
    shown = [column for column in across if drawn[column].notna().any()] or ["seed"]
    figure = Figure(figsize=(12, 5.2), layout="constrained")
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    handles = []
    for column, axes in zip(shown, panels, strict=True):
        handles = [
            _draw_experiment(axes, drawn[drawn["experiment"] == experiment], column, quality, style, name, number >= 6)
            for number, ((experiment, name), style) in enumerate(zip(names.items(), cycle(LINES), strict=False))
        ]
        axes.set_xlabel(across.get(column, column))
        tidy(axes, grid="both")
        if column == "seconds_total":
            scale_logarithmically(axes)
    panels[0].set_ylabel(labels()[quality])
    key = "dot: one run; large marker: mean over seeds"
    if shown[0] == "pixel_AUPIMO" and quality == "pixel_AUPRO" and is_comparable(drawn).any():
        key += f"\n{_draw_published(panels[0])}"
    omitted = [plain(name) for name in display_names(table).values() if name not in names.values()]
    if omitted:
        key += f"\nnot drawn: {', '.join(omitted)}"
    figure.supxlabel(key, fontsize=9, color="0.35")
    figure.legend(handles=handles, loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    return figure


def _draw_experiment(
    axes: Axes, runs: pd.DataFrame, across: str, up: str, style: tuple[object, ...], name: str, hollow: bool
) -> object:
    colour, _, marker = style
    face = "none" if hollow else colour
    runs = runs[[across, up]].astype(float).dropna()
    axes.scatter(runs[across], runs[up], s=10, color=colour, alpha=0.5, linewidths=0)
    (handle,) = axes.plot(
        runs[across].mean(), runs[up].mean(), marker=marker, markersize=9, color=colour, markerfacecolor=face,
        markeredgewidth=1.5, linestyle="none", label=plain(name),
    )  # fmt: skip
    return handle


def _draw_published(axes: Axes) -> str:
    """Draw the published rows that have both metrics, each with a letter, and return what the letters stand for."""
    rows = [row for row in PUBLISHED if row.pixel_AUPIMO is not None and row.pixel_AUPRO is not None]
    names = []
    for letter, row in zip(ascii_lowercase, rows, strict=False):
        across, up = float(row.pixel_AUPIMO or 0), float(row.pixel_AUPRO or 0)
        axes.plot(across, up, marker="D", markersize=4.5, color="0.4", markerfacecolor="none")
        axes.annotate(letter, (across, up), (5, -3), textcoords="offset points", fontsize=9, color="0.35")
        names.append(f"{letter} {row.source.split(' (')[0]}, {row.backbone}")
    return f"open diamond: published ({'; '.join(names)})"
