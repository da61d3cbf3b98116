"""Figures of curves: ROC, precision and recall, with the thresholds on them, and the overlap of regions."""

from collections.abc import Callable, Sequence
from itertools import cycle

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from padim_bottle.evaluation.curves import FPR_LIMIT
from padim_bottle.evaluation.predictions import ALL_DEFECTS
from padim_bottle.report.reference_thresholds import reference_thresholds
from padim_bottle.report.score_figures import BLACK, LINES, Drawing, plain, tidy
from padim_bottle.runs.run import Run

# Of a confusion matrix: what recall counts, and what is left of all defects.
_FOUND = ("true_positive", "false_negative")


def draw_roc(run: Run) -> Drawing:
    """Draw the ROC curve of the images, whole and its corner, with the thresholds on it."""
    curve = run.curve()
    if curve is None:
        return None
    # As a threshold falls: first the good images between two defective scores, then those of the next one.
    alarms = np.stack([curve.false_positives, curve.false_positives_above], axis=1).ravel()[::-1]
    found = np.stack([curve.true_positives, np.append(curve.true_positives[1:], 0)], axis=1).ravel()[::-1]
    fpr = np.concatenate([[0], alarms, [curve.negatives]]) / curve.negatives
    recall = np.concatenate([[0], found, [curve.positives]]) / curve.positives
    figure, panels = _two_panels("ROC")
    for axes in panels:
        axes.plot(fpr, recall, color=BLACK, linewidth=1.5, zorder=3)
        axes.set(xlabel="false-alarm rate", ylabel="recall (share of defects found)")
    panels[0].plot([0, 1], [0, 1], color="0.6", linewidth=0.8, linestyle=":")
    panels[0].set(xlim=(-0.03, 1), ylim=(0, 1.03))
    panels[1].set(xlim=(-0.01, 0.3), ylim=(0.7, 1.01))
    _mark_thresholds(figure, panels, run, lambda c: (_rate(c, "false_positive", "true_negative"), _rate(c, *_FOUND)))
    caption = (
        f"The share of defective images that are found against the share of good images that raise an alarm, over all "
        f"thresholds: the area beneath is {curve.auroc:.4f}. The nearer the line to the upper left corner the better; "
        "the dotted diagonal is guessing. Markers show where a threshold puts the run: alpha thresholds come from good "
        "training images alone, F1Max and anomalib's have seen the defects."
    )
    return "ROC of the images", caption, figure


def draw_precision_recall(run: Run) -> Drawing:
    """Draw precision against recall of the images, whole and its corner, with the thresholds on it."""
    curve = run.curve()
    if curve is None:
        return None
    recall = curve.true_positives / curve.positives
    precision = curve.true_positives / (curve.true_positives + curve.false_positives)
    figure, panels = _two_panels("Precision and recall")
    for axes in panels:
        # A step holds to the left: lower recall at this precision costs nothing.
        axes.step(
            np.append(recall, 0), np.append(precision, precision[-1]), where="pre", color=BLACK, linewidth=1.5,
            zorder=3,
        )  # fmt: skip
        axes.set(xlabel="recall (share of defects found)", ylabel="precision")
    prevalence = curve.positives / (curve.positives + curve.negatives)
    panels[0].axhline(prevalence, color="0.6", linewidth=0.8, linestyle=":")
    panels[0].set(xlim=(0, 1.03), ylim=(0, 1.03))
    panels[1].set(xlim=(0.7, 1.01), ylim=(0.7, 1.01))
    _mark_thresholds(figure, panels, run, lambda c: (_rate(c, *_FOUND), _rate(c, "true_positive", "false_positive")))
    caption = (
        f"What an alarm is worth against how many defects raise one, over all thresholds: average precision "
        f"{curve.average_precision:.4f}. The nearer to the upper right corner the better; the dotted line is guessing, "
        f"for {prevalence:.0%} of these test images are defective. In use defects are rarer, and precision is lower; "
        "recall and false-alarm rate do not depend on that."
    )
    return "Precision and recall of the images", caption, figure


def draw_pro_curve(run: Run) -> Drawing:
    """Draw the per-region overlap of all defects and of each type over the false positive rate of the pixels."""
    names = [str(name) for name in run.arrays.get("pro_names", [])]
    if not names:
        return None
    figure = Figure(figsize=(6.8, 4.4))
    axes = figure.add_axes((0.1, 0.13, 0.56, 0.78))
    styles = cycle(LINES)
    for i, name in enumerate(names):
        fpr, overlap = run.arrays[f"pro_{i}"]
        everything = name == ALL_DEFECTS
        area = run.metrics["pixel_AUPRO"] if everything else run.metrics["per_defect"][name]["pixel_AUPRO"]
        colour, line, marker = (BLACK, "-", None) if everything else next(styles)
        label = f"{'all defects' if everything else plain(name)}\nAUPRO {'-' if area is None else f'{area:.4f}'}"
        axes.plot(
            fpr, overlap, color=colour, linestyle=line, linewidth=2 if everything else 1.3, marker=marker, markersize=5,
            markevery=0.1, label="", zorder=2 + everything,
        )  # fmt: skip
        axes.plot([], [], color=colour, linestyle=line, marker=marker, markersize=5, label=label)
    axes.set(
        xlim=(0, FPR_LIMIT), ylim=(0, 1.01),
        xlabel="share of normal pixels called anomalous", ylabel="mean share of a defect's region that is found",
    )  # fmt: skip
    tidy(axes, grid="both")
    _place_words(figure, axes, "Per-region overlap", 26)
    axes.legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, fontsize=9, labelspacing=1)
    caption = (
        "How much of a defect is outlined, as a mean over defects so that small ones count as much as large ones, "
        f"against the share of normal pixels that are called anomalous with it. AUPRO is the area up to {FPR_LIMIT}, "
        "over its width. The steeper the rise at the left the better: that is where thresholds in use lie."
    )
    return "PRO curve of the pixels", caption, figure


def _two_panels(title: str) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(8, 4.6))
    panels = list(
        figure.subplots(1, 2, gridspec_kw={"left": 0.08, "right": 0.98, "bottom": 0.32, "top": 0.93, "wspace": 0.25})
    )
    for axes, name, left in zip(panels, (title, "its corner, enlarged"), (26, 32), strict=True):
        tidy(axes, grid="both")
        _place_words(figure, axes, name, left)
    return figure, panels


def _place_words(figure: Figure, axes: Axes, title: str, left: int) -> None:
    """Place title and labels, the vertical one so many points to the left: Matplotlib would measure all ticks twice."""
    axes.set_title(title, y=1.0)
    below = ScaledTranslation(0, -20 / 72, figure.dpi_scale_trans)
    beside = ScaledTranslation(-left / 72, 0, figure.dpi_scale_trans)
    axes.xaxis.set_label_coords(0.5, 0, axes.transAxes + below)
    axes.yaxis.set_label_coords(0, 0.5, axes.transAxes + beside)


def _mark_thresholds(
    figure: Figure, panels: Sequence[Axes], run: Run, place: Callable[[dict[str, int]], tuple[float, float]]
) -> None:
    """Mark each threshold at its place on the curve; markers grow, so that those on one spot can be told apart."""
    references = reference_thresholds(run)[0]
    handles = []
    for i, (reference, (colour, _, marker)) in enumerate(zip(references, cycle(LINES), strict=False)):
        counts = run.counts(reference.value)
        label = (
            f"{reference.name} ({reference.value:.2f}): {counts['true_positive']} of "
            f"{counts['true_positive'] + counts['false_negative']} found, {counts['false_positive']} false alarm"
            f"{'s' * (counts['false_positive'] != 1)}"
        )
        for axes in panels:
            (handle,) = axes.plot(
                *place(counts), marker=marker, markersize=5 + 2.5 * i, markerfacecolor="none", markeredgecolor=colour,
                markeredgewidth=1.5, linestyle="none", label=label, zorder=4 + len(references) - i,
            )  # fmt: skip
        handles.append(handle)
    if handles:
        figure.legend(handles=handles, loc="lower center", ncols=2, frameon=False, fontsize=8.5)


def _rate(counts: dict[str, int], part: str, rest: str) -> float:
    total = counts[part] + counts[rest]
    return counts[part] / total if total else np.nan
