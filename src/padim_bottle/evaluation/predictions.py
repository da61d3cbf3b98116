"""What a model said about test images, the ground truth, and the curves that both make.

A sample counts as defective when score >= threshold, so that the score a threshold was read from lies on its defective
side. How the curves are made, and why not by anomalib: see curves.py.

Memory: beside the maps and masks, a copy of the maps and masks of one defect type at a time, its int32
region labels and the sorted normal pixels, about 13 bytes a pixel at worst.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from padim_bottle.errors import UserError
from padim_bottle.evaluation.curves import Curve, aupimo, aupimo_interval, region_weights, trace_curve
from padim_bottle.evaluation.differences import CONFIDENCE
from padim_bottle.evaluation.regions import called_pixels

GOOD = "good"
"""MVTec AD's folder name for images without a defect."""
ALL_DEFECTS = ""
"""Stands for all defect types together among the names of the curves; no folder can have this name."""


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
    area: (H, W) bool, the pixels that count in pixel metrics, or None: all do. Masks are cut to it.

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
    area: np.ndarray | None = None

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

        if self.area is not None and masks is not None:
            # For all who make predictions; the class is frozen.
            object.__setattr__(self, "masks", masks & self.area)
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

    @property
    def defects(self) -> list[str]:
        """The defect types."""
        return sorted(set(self.defect_types) - {GOOD})

    def pixels(self) -> tuple[np.ndarray, np.ndarray]:
        """Return anomaly_maps and masks; raise ValueError where there are none."""
        if self.anomaly_maps is None or self.masks is None:
            raise ValueError("these predictions have no anomaly maps or no masks")
        return self.anomaly_maps, self.masks

    def with_masks(self) -> "Predictions | None":
        """Return the predictions on images whose masks are known; ``None`` where that leaves no good or defective one.

        Without any defective image the good ones are returned, because their pixels still tell something.
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
            area=self.area,
        )

    def normal(self, masks: np.ndarray) -> np.ndarray:
        """Return the pixels (n, H, W) that count and that no mask (n, H, W) marks."""
        return ~masks if self.area is None else ~masks & self.area

    @cached_property
    def image_curves(self) -> dict[str, Curve | None]:
        """The images' curve for each defect type against the good images, and for ``ALL_DEFECTS``."""
        types, scores = np.array(self.defect_types), self.scores.astype(np.float64)
        good = np.sort(scores[~self.labels])
        chosen = {name: types == name for name in self.defects}
        return {name: trace_curve([good], scores[of]) for name, of in {ALL_DEFECTS: self.labels, **chosen}.items()}

    @cached_property
    def pixel_curves(self) -> dict[str, Curve | None]:
        """The pixels' curve for each defect type against the good images, and for ``ALL_DEFECTS``.

        Every normal pixel is sorted once, here. Empty without maps or masks.
        """
        known = self.with_masks()
        if known is None:
            return {}
        types = np.array(known.defect_types)
        all_maps, all_masks = known.pixels()
        normal: dict[str, np.ndarray] = {}
        defective: dict[str, np.ndarray] = {}
        weights: dict[str, np.ndarray] = {}
        for name in sorted(set(known.defect_types)):
            maps, masks = all_maps[types == name], all_masks[types == name]
            normal[name], defective[name] = maps[known.normal(masks)], maps[masks]
            normal[name].sort()
            weights[name] = region_weights(masks)
        every = trace_curve(
            list(normal.values()), np.concatenate(list(defective.values())), np.concatenate(list(weights.values()))
        )
        return {ALL_DEFECTS: every} | {
            name: trace_curve([normal[t] for t in {GOOD, name} & normal.keys()], defective[name], weights[name])
            for name in known.defects
        }

    @cached_property
    def overlaps(self) -> np.ndarray:
        """AUPIMO of each image (N,), NaN where it is undefined: for images without a defect in their mask, too."""
        overlaps = np.full(len(self.labels), np.nan)
        if self.anomaly_maps is not None and self.masks is not None:
            areas = aupimo(*self._marked())
            if areas is not None:
                overlaps[self.masks.any(axis=(1, 2))] = areas
        return overlaps

    @cached_property
    def overlap_interval(self) -> tuple[float, float] | None:
        """Between what limits the mean AUPIMO lies with other good images; ``None`` where it is undefined."""
        return None if np.isnan(self.overlaps).all() else aupimo_interval(*self._marked(), confidence=CONFIDENCE)

    def _marked(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the maps of good images, and maps and masks of those whose mask marks a defect."""
        maps, masks = self.pixels()
        marked = masks.any(axis=(1, 2))
        good = maps[~self.labels]
        return good if self.area is None else good[:, self.area], maps[marked], masks[marked]

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

    def anomalous(self, score: float) -> bool | None:
        """Return the verdict on a raw image score; ``None`` without an image threshold."""
        return None if self.image is None else float(score) >= self.image


def predictions_table(
    predictions: Predictions,
    thresholds: Thresholds,
    p_values: Sequence[float] | np.ndarray | None = None,
) -> pd.DataFrame:
    """Lay the predictions out one row an image, in the given order.

    Columns: image_path, defect_type, label, score, p_value (where p_values (N,) are given), predicted_label
    and threshold (empty without an image threshold), map_max (the largest pixel score, with maps) and
    predicted_area (share of pixels that are called anomalous, see ``called_maps``, with maps and a pixel threshold).
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
            table["predicted_area"] = called_maps(predictions, thresholds).mean(axis=(1, 2))
    return table


def called_maps(predictions: Predictions, thresholds: Thresholds) -> np.ndarray:
    """Return which pixels are called anomalous, (N, H, W), see ``regions``; raise ValueError without maps."""
    if predictions.anomaly_maps is None:
        raise ValueError("these predictions have no anomaly maps")
    called = np.zeros(predictions.anomaly_maps.shape, dtype=bool)
    for number, (anomaly_map, score) in enumerate(zip(predictions.anomaly_maps, predictions.scores, strict=True)):
        called[number] = called_pixels(anomaly_map, thresholds.anomalous(score), thresholds.pixel)
    return called


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
