"""A finished run as its files hold it: what its figures and its report are made from.

Metrics and predictions are in files that people read; what else the figures need, and is too much for those, is in
``figures/data.npz``: curves over all pixels thinned to a few hundred points, and the maps of the calibration.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from padim_bottle.errors import UserError
from padim_bottle.evaluation.curves import FPR_LIMIT, Curve, trace_curve
from padim_bottle.evaluation.predictions import GOOD, Predictions, confusion_matrix
from padim_bottle.model.rule import Rule, fewest_scores
from padim_bottle.runs.folder import picture_path

ALPHAS = (0.01, 0.05, 0.10)
"""False-alarm rates whose thresholds figures and report show."""

DATA_FILE = Path("figures", "data.npz")
STRIPS = Path("figures", "panels")

_POINTS = 300


class Reference(NamedTuple):
    """A threshold worth knowing: an image is called anomalous when its score is ``value`` or more."""

    name: str
    value: float
    note: str


@dataclass(frozen=True, eq=False)
class RecordedRun:
    """A run, read from its folder.

    Attributes:
        folder: the run's folder.
        metrics: what ``metrics.json`` holds.
        predictions: one row a test image, by ascending score: image (its name), defect_type, label, score, p_value,
            covered, spilled (shares of the defect's pixels and of the others that are called anomalous), strip (path
            of its panels in the folder, or ``None``).
        arrays: what ``figures/data.npz`` holds; empty without it.
        training: one row a training photo, the oddest first: image (its name), part (that it shows, or its name),
            score and p_value (left out of the model that it is measured by), strip. Empty where the run did not
            record them.
    """

    folder: Path
    metrics: dict[str, Any]
    predictions: pd.DataFrame
    arrays: dict[str, np.ndarray]
    training: pd.DataFrame

    @property
    def threshold(self) -> float | None:
        """The run's own image threshold."""
        return self.metrics["thresholds"]["image"]

    @property
    def defects(self) -> list[str]:
        """The defect types of the test images."""
        return sorted(set(self.predictions["defect_type"]) - {GOOD})

    @property
    def calibration(self) -> dict[str, Any]:
        """How the thresholds were calibrated; empty for a run that is not."""
        return self.metrics["calibration"] or {}

    @property
    def calibration_scores(self) -> np.ndarray:
        """Leave-one-out scores of the training images, float32, sorted; (0,) for a run that is not calibrated."""
        return np.array(self.calibration.get("scores", []), dtype=np.float32)

    def is_real(self) -> bool:
        """Tell whether the images are real and the weights were trained: else the figures say nothing."""
        return not self.metrics["data"]["synthetic"] and self.metrics["weights"]["source"] != "random"

    def curve(self) -> Curve | None:
        """Return the curve of the images; ``None`` without defective or without good ones."""
        scores, labels = self.predictions["score"].to_numpy(), self.predictions["label"].to_numpy(bool)
        return trace_curve([np.sort(scores[~labels])], scores[labels])

    def counts(self, threshold: float) -> dict[str, int]:
        """Return the confusion matrix at a threshold, by the rule ``score >= threshold``."""
        labels = self.predictions["label"].to_numpy(bool)
        return confusion_matrix(self.predictions["score"].to_numpy() >= threshold, labels)


def save_data(
    path: Path,
    predictions: Predictions | None,
    pixel_threshold: float | None,
    map_mean: np.ndarray,
    map_std: np.ndarray,
) -> None:
    """Write ``figures/data.npz``.

    Args:
        path: where to.
        predictions: with maps and masks, as far as there are any; ``None`` for a run without test images.
        pixel_threshold: raw score from which a pixel is called anomalous.
        map_mean: (H, W) mean of the training images' leave-one-out maps; (0,) if there are none.
        map_std: (H, W) their standard deviation; (0,) if there are none.
    """
    arrays: dict[str, Any] = {"map_mean": np.float32(map_mean), "map_std": np.float32(map_std)}
    if predictions is not None and predictions.with_masks() is not None:
        curves = {name: curve for name, curve in predictions.pixel_curves.items() if curve is not None}
        arrays["pro_names"] = np.array(list(curves), dtype=np.str_)
        arrays |= {f"pro_{i}": np.array(_thin(curve), dtype=np.float32) for i, curve in enumerate(curves.values())}
        if pixel_threshold is not None:
            maps, masks = predictions.pixels()
            called = maps >= pixel_threshold
            known = 1.0 if predictions.unmasked is None else np.where(predictions.unmasked, np.nan, 1.0)
            defective, normal = known * masks.sum(axis=(1, 2)), known * (~masks).sum(axis=(1, 2))
            with np.errstate(invalid="ignore"):
                arrays["covered"] = np.float32((called & masks).sum(axis=(1, 2)) / defective)
                arrays["spilled"] = np.float32((called & ~masks).sum(axis=(1, 2)) / normal)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)


def read_recorded_run(folder: Path) -> RecordedRun:
    """Read a finished run.

    Raises:
        UserError: there is none in this folder, or its files are broken.
    """
    try:
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        arrays = {}
        if (folder / DATA_FILE).is_file():
            with np.load(folder / DATA_FILE, allow_pickle=False) as data:
                arrays = dict(data)
        predictions = _read_predictions(folder, arrays, expected=metrics["data"]["test_images"] > 0)
        training = _read_training_photos(folder)
        metrics["thresholds"]["image"], metrics["calibration"], metrics["data"]["synthetic"]
    except FileNotFoundError as error:
        raise UserError(f"There is no finished run in {folder}: {Path(error.filename).name} is missing.") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder}: the run's files are broken: {type(error).__name__}: {error}.") from error
    return RecordedRun(folder, metrics, predictions, arrays, training)


def _read_predictions(folder: Path, arrays: dict[str, np.ndarray], expected: bool) -> pd.DataFrame:
    path = folder / "predictions.csv"
    columns = ["image_path", "defect_type", "label", "score", "p_value"]
    table = _read_csv(path) if expected or path.is_file() else pd.DataFrame(columns=columns)
    images = [
        Path(defect, Path(path).name) for path, defect in zip(table["image_path"], table["defect_type"], strict=True)
    ]
    predictions = pd.DataFrame(
        {
            "image": [image.name for image in images],
            "defect_type": table["defect_type"],
            "label": table["label"].astype(bool),
            "score": table["score"].astype(float),
            "p_value": table.get("p_value", np.nan),
            "covered": arrays.get("covered", np.nan),
            "spilled": arrays.get("spilled", np.nan),
            "strip": _strips(folder, images),
        }
    )
    return predictions.sort_values(["score", "defect_type", "image"], ignore_index=True)


def _read_training_photos(folder: Path) -> pd.DataFrame:
    path = folder / "training_photos.csv"
    table = _read_csv(path) if path.is_file() else pd.DataFrame(columns=["image_path", "part", "score", "p_value"])
    images = [Path("train", Path(path).name) for path in table["image_path"]]
    photos = pd.DataFrame(
        {
            "image": [image.name for image in images],
            "part": table["part"],
            "score": table["score"].astype(float),
            "p_value": table["p_value"].astype(float),
            "strip": _strips(folder, images),
        }
    )
    return photos.sort_values(["p_value", "score"], ascending=[True, False], ignore_index=True, kind="stable")


def _read_csv(path: Path) -> pd.DataFrame:
    return pd.read_csv(
        path,
        dtype={"image_path": str, "defect_type": str, "part": str},
        # A defect may be called 'NA'. Only round_trip gives back every digit.
        keep_default_na=False,
        na_values={name: [""] for name in ("p_value", "threshold", "predicted_label", "predicted_area")},
        float_precision="round_trip",
    )


def _strips(folder: Path, images: Iterable[Path]) -> pd.Series:
    """Return where the run keeps the panels of these images, ``None`` where it does not."""
    taken: set[Path] = set()
    strips = [strip_path(picture_path(image, taken)) for image in images]
    return pd.Series([strip if (folder / strip).is_file() else None for strip in strips], dtype=object)


def strip_path(picture: Path) -> Path:
    """Return where a run keeps the panels of a picture, as a strip, for its figures and its report."""
    return STRIPS / picture.parent.name / f"{picture.stem}.jpg"


def spell_alpha(alpha: float) -> str:
    """Return a false-alarm rate as it is named everywhere: ``alpha = 5 %``."""
    return f"alpha = {100 * alpha:g} %"


def reference_thresholds(run: RecordedRun) -> tuple[list[Reference], list[str]]:
    """Return the thresholds to show beside the images, in a fixed order, and why others cannot be shown.

    The conformal ones are those that the model itself would have had at that alpha.
    """
    found, reasons = [], []
    own = run.threshold
    scores = run.calibration_scores
    for alpha in ALPHAS if len(scores) else ():
        needed = fewest_scores(alpha)
        if len(scores) < needed:
            reasons.append(
                f"{spell_alpha(alpha)} is not shown: it needs at least {needed} training images, and there are "
                f"{len(scores)}."
            )
            continue
        value = Rule.calibrated(scores, alpha).threshold
        above = int((scores >= value).sum())
        note = f"{above} of {len(scores)} training images, each left out in turn, score above it"
        if above < 5:
            note += ": few, so it is rough"
        if value == own:
            note = f"this run's own; {note}"
        found.append(Reference(spell_alpha(alpha), value, note))
    best = run.metrics["thresholds"]["image_F1Max"]
    if own is not None and own not in {best, *(reference.value for reference in found)}:
        found.append(Reference("this run's own", own, run.metrics["thresholds"]["source"]))
    if best is not None:
        mark = "this run's own; " if own == best else ""
        found.append(Reference("F1Max", best, f"{mark}the best F1 that any threshold reaches: it has seen the defects"))
        # The same number by another rule: score > threshold.
        just_above = float(np.nextafter(best, np.inf))
        found.append(
            Reference("anomalib's", just_above, "F1Max's, but only scores above it count: it has seen the defects too")
        )
    if not len(scores):
        reasons.append("This run was not calibrated: it has no threshold that has not seen the defects.")
    return found, reasons


def _thin(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    """Keep a few hundred points of a curve's hundred thousands: even steps in both directions."""
    fpr = np.append(0.0, curve.false_positives[::-1] / curve.negatives)
    overlap = np.append(0.0, np.asarray(curve.overlap)[::-1])
    steps = np.linspace(0, 1, _POINTS)
    kept = np.concatenate([np.searchsorted(overlap, steps), np.searchsorted(fpr, FPR_LIMIT * steps), [0, len(fpr) - 1]])
    kept = np.unique(kept.clip(0, len(fpr) - 1))
    return fpr[kept], overlap[kept]
