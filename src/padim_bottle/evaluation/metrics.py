"""Turn raw predictions on a test set into metrics.

Every metric is computed on raw scores and a sample counts as defective when score >= threshold, so that
the score a threshold was read from lies on its defective side. anomalib's labels are score > threshold
(anomalib/post_processing/post_processor.py, 2.7.0), which misses the very image its threshold comes from;
image_F1Score_anomalib shows what that costs. How the curves are made, and why not by anomalib: see curves.py.

Memory: beside the maps and masks, a copy of the maps and masks of one defect type at a time, its int32
region labels and the sorted normal pixels, about 13 bytes a pixel at worst. 2000 maps of
256 x 256 (131 million pixels) took 8 s on two CPU cores and 2.2 GB, inputs included.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from padim_bottle.errors import UserError
from padim_bottle.evaluation.curves import Curve, aupimo, region_weights, trace_curve

GOOD = "good"
"""MVTec AD's folder name for images without a defect."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """What a model said about N test images (N may be 0), and the ground truth.

    image_paths: N paths.
    defect_types: N names, 'good' or the defect's.
    labels: (N,) bool, True for defective, hence exactly where defect_types is not 'good'.
    scores: (N,) float, raw image scores; higher is more anomalous.
    anomaly_maps: (N, H, W) float32, raw pixel scores, or None.
    masks: (N, H, W) bool, True on a defect, or None. A defective image may have an empty mask (its pixels
        then count as normal), a good image may not have any other.
    unmasked: (N,) bool, True for a defective image whose mask is not known, or None: all are known. Pixel metrics
        leave such an image out.

    Raises ValueError for shapes that do not fit together and UserError, naming the first image at fault,
    for scores that are not finite and for ground truth that contradicts itself.
    """

    image_paths: list[str]
    defect_types: list[str]
    labels: np.ndarray
    scores: np.ndarray
    anomaly_maps: np.ndarray | None = None
    masks: np.ndarray | None = None
    unmasked: np.ndarray | None = None

    def __post_init__(self) -> None:
        n = len(self.image_paths)
        shapes = {
            "defect_types": (len(self.defect_types),),
            "labels": self.labels.shape,
            "scores": self.scores.shape,
        }
        for name, shape in shapes.items():
            if shape != (n,):
                raise ValueError(f"{name} has shape {shape}, expected {(n,)}: one entry an image")
        for name in ("anomaly_maps", "masks"):
            array = getattr(self, name)
            if array is not None and (array.ndim != 3 or len(array) != n):
                raise ValueError(f"{name} has shape {array.shape}, expected ({n}, height, width)")
        if self.labels.dtype != bool or (self.masks is not None and self.masks.dtype != bool):
            raise ValueError("labels and masks must be boolean arrays")
        maps, masks = self.anomaly_maps, self.masks
        if maps is not None and masks is not None and maps.shape != masks.shape:
            raise ValueError(f"anomaly_maps {maps.shape} and masks {masks.shape} differ in shape")

        self._refuse(~np.isfinite(self.scores), "its anomaly score is not a finite number")
        self._refuse(
            self.labels != (np.array(self.defect_types) != GOOD),
            "its label and its defect type contradict each other",
        )
        if self.anomaly_maps is not None:
            finite = np.array([np.isfinite(image).all() for image in self.anomaly_maps])
            self._refuse(~finite, "its anomaly map holds values that are not finite numbers")
        if self.masks is not None:
            self._refuse(self.masks.any(axis=(1, 2)) & ~self.labels, "it is labelled good but its mask marks a defect")

    def pixels(self) -> tuple[np.ndarray, np.ndarray]:
        """Return anomaly_maps and masks; raise ValueError where there are none."""
        if self.anomaly_maps is None or self.masks is None:
            raise ValueError("these predictions have no anomaly maps or no masks")
        return self.anomaly_maps, self.masks

    def with_masks(self) -> "Predictions | None":
        """Return the predictions on images whose masks are known; ``None`` where that leaves no good or defective one.

        Without defective images at all the good ones are returned, for what their pixels tell.
        """
        if self.anomaly_maps is None or self.masks is None or not len(self.labels):
            return None
        if self.unmasked is None or not self.unmasked.any():
            return self
        known = ~self.unmasked
        if not self.labels[known].any():
            return None
        return Predictions(
            [path for path, kept in zip(self.image_paths, known, strict=True) if kept],
            [name for name, kept in zip(self.defect_types, known, strict=True) if kept],
            self.labels[known],
            self.scores[known],
            self.anomaly_maps[known],
            self.masks[known],
        )

    def _refuse(self, faulty: np.ndarray, reason: str) -> None:
        if faulty.any():
            count = int(faulty.sum())
            others = f" (and {count - 1} more)" if count > 1 else ""
            raise UserError(f"Cannot evaluate {self.image_paths[int(np.argmax(faulty))]}{others}: {reason}.")


@dataclass(frozen=True)
class Thresholds:
    """Raw-score thresholds, or None where there is none, and in words where they come from.

    source: for instance 'leave-one-out, alpha = 0.05'.
    """

    image: float | None
    pixel: float | None
    source: str

    def __post_init__(self) -> None:
        for name in ("image", "pixel"):
            value = getattr(self, name)
            if value is not None and not np.isfinite(value):
                raise ValueError(f"the {name} threshold is {value}: use None where there is none")


F1_MAX_SOURCE = "maximises F1 on the test labels: it has seen the defects"


def evaluate(predictions: Predictions, thresholds: Thresholds) -> dict[str, Any]:
    """Compute every metric; the result can be written as strict JSON.

    An undefined value is None, never NaN: areas and F1Max where only one class is present, F1Score and
    recall without defective samples, precision where nothing is predicted defective, whatever needs a
    threshold, a map or a mask that is not there, AUPIMO with fewer than 100,000 pixels of good images. AUPR is
    average precision, AUPRO ends at FPR 0.3 and AUPIMO runs from FPR 1e-5 to 1e-4, all as anomalib 2.7.0;
    pixel_AUPIMO is the mean over the images whose masks mark a defect. image_F1Score_anomalib is its default:
    the F1Max threshold, fitted on the test labels, with score > threshold. per_defect compares each defect type
    with all good images.
    """
    types = np.array(predictions.defect_types)
    defects = sorted(set(predictions.defect_types) - {GOOD})
    scores, labels = predictions.scores.astype(np.float64), predictions.labels
    good_scores = np.sort(scores[~labels])
    with_masks = predictions.with_masks()

    image_curve = trace_curve([good_scores], scores[labels])
    pixel_curves = {} if with_masks is None else _trace_pixels(with_masks)
    overlaps = _image_overlaps(predictions)
    image = _areas(image_curve)
    pixel = _areas(pixel_curves.get(None))
    image_counts = None
    if thresholds.image is not None and len(labels):
        image_counts = confusion_matrix(scores >= thresholds.image, labels)
    best_counts = None
    if image_curve is not None:
        best_counts = confusion_matrix(scores > image_curve.f1_max[1], labels)
    pixel_counts = None
    if with_masks is not None and thresholds.pixel is not None:
        maps, masks = with_masks.pixels()
        pixel_counts = confusion_matrix(_at_least(maps, thresholds.pixel), masks)

    per_defect = {}
    for defect in defects:
        chosen = types == defect
        curve, pixel_curve = trace_curve([good_scores], scores[chosen]), pixel_curves.get(defect)
        per_defect[defect] = {
            "images": int(chosen.sum()),
            "image_AUROC": curve and curve.auroc,
            "pixel_AUROC": pixel_curve and pixel_curve.auroc,
            "pixel_AUPRO": pixel_curve and pixel_curve.aupro(),
            "pixel_AUPIMO": _or_none(np.mean, overlaps[chosen]),
            "recall": None if thresholds.image is None else float((scores[chosen] >= thresholds.image).mean()),
        }

    return {
        "image_AUROC": image["AUROC"],
        "image_AUPR": image["AUPR"],
        "image_F1Max": image["F1Max"],
        "image_F1Score": _f1(image_counts),
        "image_precision": _ratio(image_counts, "true_positive", "false_positive"),
        "image_recall": _ratio(image_counts, "true_positive", "false_negative"),
        "image_false_alarm_rate": _ratio(image_counts, "false_positive", "true_negative"),
        "image_F1Score_anomalib": _f1(best_counts),
        "pixel_AUROC": pixel["AUROC"],
        "pixel_AUPR": pixel["AUPR"],
        "pixel_AUPRO": pixel["AUPRO"],
        "pixel_AUPIMO": _or_none(np.mean, overlaps),
        "pixel_AUPIMO_median": _or_none(np.median, overlaps),
        "pixel_F1Max": pixel["F1Max"],
        "pixel_F1Score": _f1(pixel_counts),
        "thresholds": {
            "image": None if thresholds.image is None else float(thresholds.image),
            "pixel": None if thresholds.pixel is None else float(thresholds.pixel),
            "source": thresholds.source,
            "image_F1Max": image["threshold"],
            "pixel_F1Max": pixel["threshold"],
            "F1Max_source": F1_MAX_SOURCE,
        },
        "confusion_matrix": image_counts,
        "images": {"good": int((~labels).sum()), "defective": int(labels.sum())},
        "per_defect": per_defect,
    }


def predictions_table(
    predictions: Predictions,
    thresholds: Thresholds,
    p_values: Sequence[float] | np.ndarray | None = None,
) -> pd.DataFrame:
    """Lay the predictions out one row an image, in the given order.

    Columns: image_path, defect_type, label, score, p_value (where p_values (N,) are given), predicted_label
    and threshold (empty without an image threshold), map_max (the largest pixel score, with maps) and
    predicted_area (share of pixels at or above the pixel threshold, with maps and that threshold).
    """
    table = pd.DataFrame(
        {
            "image_path": predictions.image_paths,
            "defect_type": predictions.defect_types,
            "label": predictions.labels,
            "score": predictions.scores,
        }
    )
    if p_values is not None:
        table["p_value"] = np.asarray(p_values)
    if thresholds.image is None:
        table["predicted_label"] = pd.array([pd.NA] * len(table), dtype="boolean")
        table["threshold"] = np.nan
    else:
        table["predicted_label"] = predictions.scores.astype(np.float64) >= thresholds.image
        table["threshold"] = float(thresholds.image)
    maps = predictions.anomaly_maps
    if maps is not None:
        table["map_max"] = maps.max(axis=(1, 2))
        if thresholds.pixel is not None:
            table["predicted_area"] = _at_least(maps, thresholds.pixel).mean(axis=(1, 2))
    return table


def _trace_pixels(predictions: Predictions) -> dict[str | None, Curve | None]:
    """Trace the pixels' curve for each defect type against the good images, and for all of them (None)."""
    types = np.array(predictions.defect_types)
    all_maps, all_masks = predictions.pixels()
    normal: dict[str, np.ndarray] = {}
    defective: dict[str, np.ndarray] = {}
    weights: dict[str, np.ndarray] = {}
    for name in sorted(set(predictions.defect_types)):
        maps, masks = all_maps[types == name], all_masks[types == name]
        normal[name], defective[name] = maps[~masks], maps[masks]
        normal[name].sort()  # the one costly sort: every normal pixel, once
        weights[name] = region_weights(masks)
    curves: dict[str | None, Curve | None] = {
        name: trace_curve([normal[t] for t in {GOOD, name} & normal.keys()], defective[name], weights[name])
        for name in normal
        if name != GOOD
    }
    curves[None] = trace_curve(
        list(normal.values()),
        np.concatenate(list(defective.values())),
        np.concatenate(list(weights.values())),
    )
    return curves


def _image_overlaps(predictions: Predictions) -> np.ndarray:
    """Return AUPIMO of each image (N,), NaN where it is undefined: for images without a defect in their mask, too."""
    maps, masks = predictions.anomaly_maps, predictions.masks
    overlaps = np.full(len(predictions.labels), np.nan)
    if maps is not None and masks is not None:
        marked = masks.any(axis=(1, 2))
        areas = aupimo(maps[~predictions.labels], maps[marked], masks[marked])
        if areas is not None:
            overlaps[marked] = areas
    return overlaps


def _or_none(average: Callable[[np.ndarray], Any], values: np.ndarray) -> float | None:
    """Average the values that are defined, if any."""
    defined = values[~np.isnan(values)]
    return float(average(defined)) if len(defined) else None


def _areas(curve: Curve | None) -> dict[str, float | None]:
    if curve is None:
        return dict.fromkeys(("AUROC", "AUPR", "F1Max", "threshold", "AUPRO"))
    f1_max, threshold = curve.f1_max
    return {
        "AUROC": curve.auroc,
        "AUPR": curve.average_precision,
        "F1Max": f1_max,
        "threshold": threshold,
        "AUPRO": None if curve.overlap is None else curve.aupro(),
    }


def _at_least(maps: np.ndarray, threshold: float) -> np.ndarray:
    """Compare maps >= threshold as exact numbers.

    NumPy would round the threshold to float32 first, possibly up to a map value that lies below it or down
    from one; the smallest float32 at or above the threshold gives the same answer without a float64 copy.
    """
    rounded = maps.dtype.type(threshold)
    if float(rounded) < threshold:
        rounded = np.nextafter(rounded, maps.dtype.type(np.inf))
    return maps >= rounded


def confusion_matrix(predicted: np.ndarray, labels: np.ndarray) -> dict[str, int]:
    """Return the confusion matrix of two boolean arrays of one shape."""
    positive, hit = int(labels.sum()), int((predicted & labels).sum())
    alarms = int(predicted.sum())
    return {
        "true_negative": labels.size - positive - (alarms - hit),
        "false_positive": alarms - hit,
        "false_negative": positive - hit,
        "true_positive": hit,
    }


def _ratio(counts: dict[str, int] | None, part: str, rest: str) -> float | None:
    if counts is None or counts[part] + counts[rest] == 0:
        return None
    return counts[part] / (counts[part] + counts[rest])


def _f1(counts: dict[str, int] | None) -> float | None:
    if counts is None or counts["true_positive"] + counts["false_negative"] == 0:
        return None
    hits = 2 * counts["true_positive"]
    return hits / (hits + counts["false_positive"] + counts["false_negative"])
