"""``figures/data.npz``: what the figures of a run need and is too much for its other files.

Curves over all pixels, thinned to a few hundred points, and the maps of the calibration.
"""

from pathlib import Path
from typing import Any

import numpy as np

from padim_bottle.evaluation.curves import FPR_LIMIT, Curve
from padim_bottle.evaluation.predictions import Predictions, Thresholds, called_maps

DATA_FILE = Path("figures", "data.npz")

_POINTS = 300


def save_data(
    path: Path,
    predictions: Predictions | None,
    thresholds: Thresholds,
    scored_mean: np.ndarray,
    scored_std: np.ndarray,
) -> None:
    """Write ``figures/data.npz``.

    Args:
        path: where to.
        predictions: with maps and masks, as far as there are any; ``None`` for a run without test images.
        thresholds: of the run.
        scored_mean: (H, W) mean of the training images' leave-one-out maps; (0,) if there are none.
        scored_std: (H, W) their standard deviation; (0,) if there are none.
    """
    arrays: dict[str, Any] = {"scored_mean": np.float32(scored_mean), "scored_std": np.float32(scored_std)}
    if predictions is not None and predictions.with_masks() is not None:
        curves = {name: curve for name, curve in predictions.pixel_curves.items() if curve is not None}
        arrays["pro_names"] = np.array(list(curves), dtype=np.str_)
        arrays |= {f"pro_{i}": np.array(_thin(curve), dtype=np.float32) for i, curve in enumerate(curves.values())}
        if thresholds.pixel is not None:
            masks, called = predictions.pixels()[1], called_maps(predictions, thresholds)
            known = 1.0 if predictions.unmasked is None else np.where(predictions.unmasked, np.nan, 1.0)
            others = predictions.normal(masks)
            defective, normal = known * masks.sum(axis=(1, 2)), known * others.sum(axis=(1, 2))
            with np.errstate(invalid="ignore"):
                arrays["covered"] = np.float32((called & masks).sum(axis=(1, 2)) / defective)
                arrays["spilled"] = np.float32((called & others).sum(axis=(1, 2)) / normal)
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(path, **arrays)


def _thin(curve: Curve) -> tuple[np.ndarray, np.ndarray]:
    """Keep a few hundred points of a curve's hundred thousands: even steps in both directions."""
    fpr = np.append(0.0, curve.false_positives[::-1] / curve.negatives)
    overlap = np.append(0.0, np.asarray(curve.overlap)[::-1])
    steps = np.linspace(0, 1, _POINTS)
    kept = np.concatenate([np.searchsorted(overlap, steps), np.searchsorted(fpr, FPR_LIMIT * steps), [0, len(fpr) - 1]])
    kept = np.unique(kept.clip(0, len(fpr) - 1))
    return fpr[kept], overlap[kept]
