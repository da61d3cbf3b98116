"""From a test loop's batches to predictions on all test images."""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch

from padim_bottle.data.samples import DataDescription
from padim_bottle.evaluation.predictions import Predictions
from padim_bottle.model.anomaly_map import unnormalised


def batch_predictions(outputs: Any, data: DataDescription, area: np.ndarray | None = None) -> Predictions:
    """Return a batch's raw predictions: Lightning hands them out before the post-processor normalises them.

    Args:
        outputs: of the model's test step, with anomaly maps.
        data: what the test images are.
        area: (H, W), the pixels that count.
    """
    maps = outputs.anomaly_map.detach().float().cpu().numpy()
    maps = maps.reshape(len(maps), *maps.shape[-2:])
    masks = np.zeros(maps.shape, dtype=bool) if outputs.gt_mask is None else outputs.gt_mask.cpu().numpy() > 0
    return Predictions(
        image_paths=list(outputs.image_path),
        defect_types=[data.defect_types[path] for path in outputs.image_path],
        labels=outputs.gt_label.cpu().bool().numpy(),
        # As float64 the file holds every digit: >= threshold gives the same labels again.
        scores=outputs.pred_score.detach().flatten().double().cpu().numpy(),
        anomaly_maps=maps,
        masks=masks.reshape(maps.shape),
        unmasked=np.array([path in data.unmasked for path in outputs.image_path], dtype=bool),
        area=area,
    )


def joined(batches: Sequence[Predictions]) -> Predictions:
    """Return the predictions of several batches as one; there may be none."""
    if not batches:
        return Predictions([], [], np.empty(0, dtype=bool), np.empty(0))
    return Predictions(
        list(chain.from_iterable(batch.image_paths for batch in batches)),
        list(chain.from_iterable(batch.defect_types for batch in batches)),
        **{
            name: np.concatenate([getattr(batch, name) for batch in batches])
            for name in ("labels", "scores", "anomaly_maps", "masks", "unmasked")
        },
        area=batches[0].area,
    )


def to_pictures(images: torch.Tensor) -> np.ndarray:
    """Undo the normalisation: (B, 3, H, W) tensors to (B, H, W, 3) bytes."""
    pictures = unnormalised(images.detach().cpu())
    return (pictures.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()
