"""What the record of a run says about its model: seed, weights, thresholds, calibration."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from anomalib.data.utils import ValSplitMode
from lightning import LightningModule

from padim_bottle.evaluation.predictions import Thresholds
from padim_bottle.model.backbone import LOCAL_PREFIX, Weights, locate_weights
from padim_bottle.model.rule import false_alarm_range
from padim_bottle.runs.identity import public_name


def run_seed(pl_module: LightningModule) -> int | None:
    """Return the seed that decided a run's channels: the model's, else that of ``seed_everything``, else ``None``.

    Anomalib's own models draw from the global generator, which its CLI never seeds.
    """
    seed = getattr(pl_module, "seed", None)
    if seed is not None:
        return seed
    # Lightning's note of its last call of seed_everything, unless the generator was seeded otherwise since.
    noted = os.environ.get("PL_GLOBAL_SEED", "")
    return int(noted) if noted == str(torch.initial_seed()) else None


def run_thresholds(pl_module: LightningModule, datamodule: Any = None) -> Thresholds:
    """Return the raw-score thresholds of a model's post-processor and where they come from.

    Args:
        pl_module: the fitted model.
        datamodule: where its validation images came from, if that is known.
    """
    post_processor = pl_module.post_processor
    if post_processor is None or not post_processor.enable_thresholding:
        return Thresholds(None, None, "none")
    alpha = getattr(post_processor, "alpha", None)
    split = getattr(datamodule, "val_split_mode", None)
    if alpha is not None:
        source = f"leave-one-out scores of the training images, alpha = {alpha:g}"
        if (confidence := getattr(post_processor, "confidence", None)) is not None:
            source += f", confidence = {confidence:g}"
    elif split is None:
        source = "anomalib: maximises F1 on the validation images, which by default are the test images"
    elif split is ValSplitMode.SAME_AS_TEST:
        source = "anomalib: maximises F1 on the test labels"
    else:
        source = f"anomalib: maximises F1 on validation images ({split.value})"
    values = [post_processor.image_threshold.item(), post_processor.pixel_threshold.item()]
    image, pixel = (value if np.isfinite(value) else None for value in values)
    return Thresholds(image, pixel, source)


def run_p_values(pl_module: LightningModule, scores: np.ndarray) -> np.ndarray | None:
    """Return the p-values (N,) of raw image scores (N,); ``None`` where the model is not calibrated."""
    rule = getattr(pl_module.post_processor, "rule", None)
    return None if rule is None else rule.p_values(scores)


def area_of(pl_module: LightningModule) -> np.ndarray | None:
    """Return the pixels (H, W) that count for a model; ``None`` where all do."""
    area = getattr(pl_module.model, "area", None)
    return area.cpu().numpy() if area is not None and area.numel() else None


def describe_model(pl_module: LightningModule) -> dict[str, Any]:
    """Return the model's class and its arguments, as far as JSON can hold them."""
    arguments = {name: value for name, value in pl_module.hparams.items() if _is_plain(value)}
    backbone = arguments.get("backbone")
    if isinstance(backbone, str) and backbone.startswith(LOCAL_PREFIX):
        # Where the weights lie on this machine is no property of the model; their hash is recorded.
        arguments["backbone"] = Path(backbone.removeprefix(LOCAL_PREFIX)).name
    if isinstance(arguments.get("region"), str):
        arguments["region"] = Path(arguments["region"]).name
    return {"class": public_name(type(pl_module)), **arguments}


def describe_weights(pl_module: LightningModule) -> dict[str, Any]:
    """Return the record of the backbone's weights; those of anomalib's Padim are found as it found them."""
    weights = getattr(pl_module, "weights", None)
    if weights is None:
        name = pl_module.hparams.get("backbone", "")
        if not pl_module.hparams.get("pre_trained", True):
            weights = Weights(name, "random", None)
        else:
            weights = locate_weights(name)[1] if name.startswith(LOCAL_PREFIX) else Weights(name, "timm", None)
    return weights.as_dict()


def describe_calibration(pl_module: LightningModule) -> dict[str, Any] | None:
    """Return how the thresholds were calibrated, or ``None`` for thresholds tuned on the test set."""
    post_processor = pl_module.post_processor
    scores = getattr(post_processor, "calibration_scores", None)
    if scores is None or not len(scores):
        return None
    told = getattr(pl_module, "training_scores", None)
    return {
        "method": "leave-one-out over the training images",
        "alpha": post_processor.alpha,
        "confidence": post_processor.confidence,
        # 95 % of models calibrated on so many parts have a false-alarm rate between these.
        "false_alarm_rate_range": list(false_alarm_range(len(scores), post_processor.alpha, post_processor.confidence)),
        "pixel_quantile": post_processor.pixel_quantile,
        "image_score": "map" if pl_module.model.scores_map else "distances",
        "position_calibration": pl_module.model.position_calibration,
        "training_images": len(scores) if told is None else len(told.image_paths),
        "parts": len(scores),
        "copies": [] if told is None else [list(pair) for pair in told.copies],
        "false_alarm_rate_of_training_images": float((scores >= post_processor.image_threshold).float().mean()),
        "scores": [float(score) for score in scores],
    }


def training_table(pl_module: LightningModule) -> pd.DataFrame | None:
    """Return what the calibration tells of the training photos, the oddest first; ``None`` without calibration."""
    training = getattr(pl_module, "training_scores", None)
    if training is None:
        return None
    table = pd.DataFrame(
        {
            "image_path": training.image_paths,
            "part": training.parts,
            "score": training.scores.double().cpu().numpy(),
            "p_value": training.p_values.cpu().numpy(),
        }
    )
    return table.sort_values("score", ascending=False, kind="stable")


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)
