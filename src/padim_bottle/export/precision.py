"""Exports whose backbone computes in bfloat16 or int8: OpenVINO alone has them.

The Gaussians, thresholds and p-values of a checkpoint belong to its single-precision features. Here the backbone is
rounded first, and what comes after is fitted and calibrated anew, to the features that the rounded one computes: the
training photos pass through it once. All but the backbone stays in single precision.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from padim_bottle.console import errors_alone
from padim_bottle.data.images import read_image, scale_of
from padim_bottle.export.openvino_model import Backbone, compile_features, keep_single_precision
from padim_bottle.model.padim import Padim

# Photos by which int8's ranges are chosen; more tell no more.
_RANGE_PHOTOS = 300


def settings_for(precision: str) -> dict[str, str]:
    """Return OpenVINO's settings for a model of a precision. Marks in the file say which operations obey."""
    return {"INFERENCE_PRECISION_HINT": "bf16" if precision == "bfloat16" else "f32"}


def lower(model: Any, backbone: Backbone, precision: str, photos: Sequence[Path]) -> Any:
    """Return an exported model with a backbone of a precision, and all else in single precision.

    Args:
        model: OpenVINO's; may be changed.
        backbone: which part of it is to be lowered.
        precision: float32, bfloat16 or int8.
        photos: of the training; they decide the ranges of int8.
    """
    if precision == "int8":
        model = _quantise(model, backbone, photos)
    lowered = precision == "bfloat16"
    return keep_single_precision(model, lambda operation: not (lowered and backbone.holds(operation)))


def _quantise(model: Any, backbone: Backbone, photos: Sequence[Path]) -> Any:
    import nncf

    nncf.set_log_level(logging.ERROR)
    others = [operation.get_friendly_name() for operation in model.get_ops() if not backbone.holds(operation)]
    bits = scale_of(photos)
    chosen = list(photos)[:: -(-len(photos) // _RANGE_PHOTOS)]
    return nncf.quantize(
        model,
        nncf.Dataset(chosen, lambda path: {"input": read_pixels(path, bits)}),
        ignored_scope=nncf.IgnoredScope(names=others, validate=False),
        subset_size=len(chosen),
    )


def refit(padim: Padim, model: Any, backbone: Backbone, precision: str, photos: Sequence[Path]) -> None:
    """Fit and calibrate a model anew, in place, to the features that an exported backbone computes.

    Args:
        padim: the checkpoint's.
        model: OpenVINO's, lowered.
        backbone: which part of it computes the features.
        precision: of that part.
        photos: of the training, in its order.
    """
    features_of = compile_features(model, backbone, settings_for(precision))
    with errors_alone("padim_bottle.model"):  # of few photos and of copies training has said so
        padim.on_train_start()
        for path in tqdm(photos, desc=precision, unit="photo", disable=None, leave=False):
            pixels = read_pixels(path, padim.photo_bits)
            maps = map(_channels_first, features_of(pixels), padim.model.feature_extractor.out_dims)
            features = dict(zip(padim.model.layers, maps, strict=True))
            image = torch.from_numpy(pixels)
            if padim.pre_processor is not None:
                image = padim.pre_processor.transform(image)
            padim.collect(features, image, [str(path)])
        padim.fit()
    padim.eval()


def _channels_first(feature: NDArray[np.float32], channels: int) -> torch.Tensor:
    """Return a map (1, C, h, w): a transformer's last step and our first, which turn channels, cancel when traced."""
    tensor = torch.from_numpy(feature)
    return tensor if tensor.shape[1] == channels else tensor.permute(0, 3, 1, 2)


def read_pixels(path: Path, bits: int) -> NDArray[np.float32]:
    """Read a photo as an exported model takes it: (1, 3, height, width) in [0, 1]."""
    return read_image(path, bits).transpose(2, 0, 1)[None].astype(np.float32) / np.float32(255)
