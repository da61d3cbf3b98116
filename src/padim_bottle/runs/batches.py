"""From a test loop's batches to predictions on all test images, and to the images that listeners are shown."""

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from anomalib.data import AnomalibDataset
from lightning import LightningModule

from padim_bottle.data.samples import DataDescription
from padim_bottle.evaluation.predictions import Predictions
from padim_bottle.model.anomaly_map import unnormalised
from padim_bottle.runs.listener import JudgedImage


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


def judged_batch(outputs: Any, predictions: Predictions, p_values: np.ndarray | None) -> Iterator[JudgedImage]:
    """Yield a batch's images as listeners take them.

    Args:
        outputs: of the model's test step.
        predictions: of these.
        p_values: (B,), of a calibrated model.
    """
    maps, masks = predictions.pixels()
    # Normalised tensors (B, 3, H, W) to bytes (B, H, W, 3).
    pictures = _to_bytes(unnormalised(outputs.image.detach().cpu()).clamp(0, 1)).permute(0, 2, 3, 1).numpy()
    for i, path in enumerate(predictions.image_paths):
        yield JudgedImage(
            Path(predictions.defect_types[i], Path(path).name),
            pictures[i],
            maps[i],
            masks[i] if predictions.unmasked is None or not predictions.unmasked[i] else None,
            float(predictions.scores[i]),
            None if p_values is None else float(p_values[i]),
        )


def judged_training(photos: pd.DataFrame, data: AnomalibDataset, pl_module: LightningModule) -> Iterator[JudgedImage]:
    """Yield training photos as a model judges them that was fitted to the others.

    Args:
        photos: rows of ``training_table``.
        data: the training photos.
        pl_module: the calibrated model.
    """
    maps = pl_module.leave_one_out_maps(list(photos.index)).float().cpu().numpy()
    row_of = {path: row for row, path in enumerate(data.samples["image_path"])}
    for photo, anomaly_map in zip(photos.itertuples(), maps, strict=True):
        picture = _to_bytes(data[row_of[photo.image_path]].image).permute(1, 2, 0).numpy()
        yield JudgedImage(
            Path("train", Path(photo.image_path).name), picture, anomaly_map, None, photo.score, photo.p_value
        )


def _to_bytes(images: torch.Tensor) -> torch.Tensor:
    return (images * 255).round().byte()
