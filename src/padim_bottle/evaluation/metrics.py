"""The metrics, each named once: what it is called, how it is computed, where it is shown.

Every metric is computed on raw scores, and a sample counts as defective when score >= threshold. anomalib's labels are
score > threshold (anomalib/post_processing/post_processor.py, 2.7.0), which misses the very image its threshold comes
from; image_F1Score_anomalib shows what that costs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from padim_bottle.evaluation.curves import Curve
from padim_bottle.evaluation.predictions import ALL_DEFECTS, GOOD, Predictions, Thresholds, confusion_matrix
from padim_bottle.evaluation.regions import at_least

F1_MAX_SOURCE = "maximises F1 on the test labels: it has seen the defects"


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a metric may look at: all test images, or the good ones and those of one defect type.

    Attributes:
        predictions: on all test images.
        thresholds: the run's own.
        defect: the type, or ``ALL_DEFECTS``.
    """

    predictions: Predictions
    thresholds: Thresholds
    defect: str = ALL_DEFECTS

    @property
    def images(self) -> Curve | None:
        """The images' curve; ``None`` without good or without defective images."""
        return self.predictions.image_curves.get(self.defect)

    @property
    def pixels(self) -> Curve | None:
        """The pixels' curve, of the images whose masks are known; ``None`` where there is none."""
        return self.predictions.pixel_curves.get(self.defect)

    @cached_property
    def overlaps(self) -> np.ndarray:
        """AUPIMO of each defective image that has one."""
        overlaps = self.predictions.overlaps[self._chosen(self.predictions)]
        return overlaps[~np.isnan(overlaps)]

    @cached_property
    def image_counts(self) -> dict[str, int] | None:
        """The images' confusion matrix at the run's own threshold, if it has one."""
        chosen = self._chosen(self.predictions)
        if self.thresholds.image is None or not chosen.any():
            return None
        called = self.predictions.scores.astype(np.float64) >= self.thresholds.image
        return confusion_matrix(called[chosen], self.predictions.labels[chosen])

    @cached_property
    def pixel_counts(self) -> dict[str, int] | None:
        """The pixels' confusion matrix at the run's own threshold, if it has one."""
        known = self.predictions.with_masks()
        if self.thresholds.pixel is None or known is None:
            return None
        maps, masks = known.pixels()
        if self.defect != ALL_DEFECTS:
            maps, masks = (array[self._chosen(known)] for array in (maps, masks))
        called, counted = at_least(maps, self.thresholds.pixel), masks | known.normal(masks)
        return confusion_matrix(called[counted], masks[counted])

    def _chosen(self, predictions: Predictions) -> np.ndarray:
        types = np.array(predictions.defect_types)
        return np.isin(types, [GOOD, self.defect]) if self.defect != ALL_DEFECTS else np.ones(len(types), dtype=bool)


@dataclass(frozen=True)
class Metric:
    """A metric.

    Attributes:
        key: its name in ``metrics.json`` and ``summary.csv``.
        label: its name in tables.
        compute: gives its value, ``None`` where it is undefined.
        level: what it is measured on.
        threshold: ``none``: it needs none; ``own``: the run's own; ``tuned``: one that is fitted on the test labels.
        headline: stands in the tables that compare, in ``report.html`` and on the screen.
        short: its name in those, where it has another one there.
        defect_key: its name among the figures of one defect type; empty where it is not among them.
    """

    key: str
    label: str
    compute: Callable[[Evidence], float | None]
    level: Literal["image", "pixel"]
    threshold: Literal["none", "own", "tuned"] = "none"
    headline: bool = False
    short: str = ""
    defect_key: str = ""

    @property
    def sees_labels(self) -> bool:
        """Whether its threshold has seen the test labels."""
        return self.threshold == "tuned"

    @property
    def heading(self) -> str:
        """Its name in tables that compare."""
        return self.short or self.label


METRICS = [
    Metric(
        "image_AUROC", "image AUROC", lambda e: e.images and e.images.auroc, "image",
        headline=True, defect_key="image_AUROC",
    ),
    Metric("image_AUPR", "image AUPR", lambda e: e.images and e.images.average_precision, "image"),
    Metric(
        "image_F1Score", "F1 at the run's own threshold", lambda e: _f1(e.image_counts), "image", "own",
        headline=True, short="F1, no defect seen",
    ),
    Metric(
        "image_precision", "precision", lambda e: _ratio(e.image_counts, "true_positive", "false_positive"),
        "image", "own",
    ),
    Metric(
        "image_recall", "recall", lambda e: _ratio(e.image_counts, "true_positive", "false_negative"), "image", "own",
        defect_key="recall",
    ),
    Metric(
        "image_false_alarm_rate", "false-alarm rate",
        lambda e: _ratio(e.image_counts, "false_positive", "true_negative"), "image", "own",
    ),
    Metric(
        "image_F1Max", "F1Max (best on the test labels)", lambda e: e.images and e.images.f1_max[0], "image", "tuned",
        headline=True, short="F1Max",
    ),
    Metric(
        "image_F1Score_anomalib", "anomalib's F1Score (tuned on the test labels)",
        lambda e: e.images and e.images.f1_above_best, "image", "tuned", headline=True, short="anomalib's F1Score",
    ),
    Metric(
        "pixel_AUROC", "pixel AUROC", lambda e: e.pixels and e.pixels.auroc, "pixel",
        headline=True, defect_key="pixel_AUROC",
    ),
    Metric(
        "pixel_AUPR", "pixel AUPR", lambda e: e.pixels and e.pixels.average_precision, "pixel",
        headline=True, short="AP",
    ),
    Metric(
        "pixel_AUPRO", "AUPRO", lambda e: e.pixels and e.pixels.aupro(), "pixel",
        headline=True, defect_key="pixel_AUPRO",
    ),
    Metric(
        "pixel_AUPIMO", "AUPIMO", lambda e: float(e.overlaps.mean()) if len(e.overlaps) else None, "pixel",
        headline=True, defect_key="pixel_AUPIMO",
    ),
    Metric(
        "pixel_AUPIMO_median", "AUPIMO, median of the images",
        lambda e: float(np.median(e.overlaps)) if len(e.overlaps) else None, "pixel",
    ),
    Metric("pixel_F1Score", "pixel F1 at the run's own threshold", lambda e: _f1(e.pixel_counts), "pixel", "own"),
    Metric(
        "pixel_F1Max", "pixel F1Max (best on the test labels)", lambda e: e.pixels and e.pixels.f1_max[0],
        "pixel", "tuned",
    ),
]  # fmt: skip
"""Every metric, in the order in which tables have them. Append one, and runs, comparisons and pages have it."""


def labels(**wanted: Any) -> dict[str, str]:
    """Return key and label of the metrics whose attributes have these values: ``labels(level="pixel")``."""
    return {metric.key: metric.label for metric in METRICS if _has(metric, wanted)}


def headings(**wanted: Any) -> dict[str, str]:
    """Return key and heading of such metrics among the headline ones; those that need no threshold come first."""
    chosen = (metric for metric in _sorted() if metric.headline and _has(metric, wanted))
    return {metric.key: metric.heading for metric in chosen}


def defect_labels() -> dict[str, str]:
    """Return key and heading of the metrics that each defect type has."""
    return {metric.defect_key: metric.heading for metric in _sorted() if metric.defect_key}


def evaluate(predictions: Predictions, thresholds: Thresholds) -> dict[str, Any]:
    """Compute every metric; the result can be written as strict JSON.

    An undefined value is None, never NaN: areas and F1Max where only one class is present, F1Score and
    recall without defective samples, precision where nothing is predicted defective, all that needs a
    threshold, a map or a mask that is not there, AUPIMO with fewer than 100,000 pixels of good images. AUPR is
    average precision, AUPRO ends at FPR 0.3 and AUPIMO runs from FPR 1e-5 to 1e-4, all as anomalib 2.7.0;
    pixel_AUPIMO is the mean over the images whose masks mark a defect, its interval a bootstrap of the good
    images. image_F1Score_anomalib is its default: the F1Max threshold, fitted on the test labels, with
    score > threshold. per_defect compares each defect type with all good images.
    """
    evidence = Evidence(predictions, thresholds)
    per_defect = {}
    for defect in predictions.defects:
        of_type = Evidence(predictions, thresholds, defect)
        per_defect[defect] = {"images": predictions.defect_types.count(defect)} | {
            metric.defect_key: metric.compute(of_type) for metric in METRICS if metric.defect_key
        }
    return {
        **{metric.key: metric.compute(evidence) for metric in METRICS},
        "pixel_AUPIMO_interval": predictions.overlap_interval and list(predictions.overlap_interval),
        "thresholds": {
            "image": None if thresholds.image is None else float(thresholds.image),
            "pixel": None if thresholds.pixel is None else float(thresholds.pixel),
            "source": thresholds.source,
            "image_F1Max": evidence.images and evidence.images.f1_max[1],
            "pixel_F1Max": evidence.pixels and evidence.pixels.f1_max[1],
            "F1Max_source": F1_MAX_SOURCE,
        },
        "confusion_matrix": evidence.image_counts,
        "images": {"good": int((~predictions.labels).sum()), "defective": int(predictions.labels.sum())},
        "per_defect": per_defect,
    }


def _sorted() -> list[Metric]:
    return sorted(METRICS, key=lambda metric: metric.threshold != "none")


def _has(metric: Metric, wanted: dict[str, Any]) -> bool:
    return all(getattr(metric, name) == value for name, value in wanted.items())


def _ratio(counts: dict[str, int] | None, part: str, rest: str) -> float | None:
    if counts is None or counts[part] + counts[rest] == 0:
        return None
    return counts[part] / (counts[part] + counts[rest])


def _f1(counts: dict[str, int] | None) -> float | None:
    if counts is None or counts["true_positive"] + counts["false_negative"] == 0:
        return None
    hits = 2 * counts["true_positive"]
    return hits / (hits + counts["false_positive"] + counts["false_negative"])
