"""The JSON card beside an exported model: what goes in, what comes out, what was decided, where it came from."""

import json
import math
from pathlib import Path
from typing import Any

from padim_bottle.errors import UserError
from padim_bottle.files import sha256

CARD = "model.json"
CARD_VERSION = 2

# The main file of each format; OpenVINO keeps its weights in a second one.
MODEL_FILES = {"onnx": "model.onnx", "openvino": "model.xml"}
FORMATS = tuple(MODEL_FILES)

INPUT = {
    "name": "input",
    "layout": "batch, colour, height, width",
    "batch": "any number of photos of one size",
    "size": "any: the model resizes photos itself, with antialiasing, and normalises them",
    "colour_order": "RGB",
    "type": "float32",
    "value_range": [0.0, 1.0],
}
# Exactly anomalib's, so that its inferencers take the model.
OUTPUTS = {
    "pred_score": "(B, 1) image score, normalised: 0 to 1, threshold 0.5",
    "pred_label": "(B, 1) true for anomalous",
    "anomaly_map": "(B, 1, H, W) pixel scores, normalised: 0 to 1, threshold 0.5, at the model's own resolution",
    "pred_mask": "(B, 1, H, W) true on pixels at or above the pixel threshold, whatever the verdict",
}
# How the score of predictions.csv is had back from the normalised one.
SOFT = "image + image_scale * y / (1 - |y|) with y = 2 * pred_score - 1"
LINEAR = "image + image_scale * (pred_score - 0.5), at least or at most where pred_score is 1 or 0"


def describe_padim(padim: Any, metrics: dict[str, Any] | None = None) -> dict[str, Any]:
    """Return the part of the card that does not depend on the format.

    Args:
        padim: a fitted ``Padim``.
        metrics: the run's ``metrics.json``, where there is one.

    Raises:
        UserError: the model has no image threshold, so it can give no verdict.
    """
    from padim_bottle.runs.environment import versions
    from padim_bottle.runs.record import describe_calibration, describe_model, run_thresholds

    thresholds = run_thresholds(padim)
    if thresholds.image is None:
        raise UserError("This model has no image threshold (it was trained without validation and calibration).")
    calibrated = describe_calibration(padim)
    metrics = metrics or {}
    post_processor = padim.post_processor
    scale = score = pixel_scale = None
    if post_processor.enable_normalization:
        scale = post_processor.image_scale if calibrated else post_processor.image_max - post_processor.image_min
        scale, score = scale.item(), SOFT if calibrated else LINEAR
        pixel_scale = post_processor.pixel_scale.item() if calibrated else None
    # Several photos of a part come in series, which the watch for drift would take for drift.
    grouped = padim.group is not None or padim.copies == "group"
    map_means = post_processor.calibration_map_means.tolist() if calibrated and not grouped else []
    return {
        "input": {**INPUT, "model_size": list(padim.input_size or ()), "photo_bits": padim.photo_bits},
        "outputs": OUTPUTS,
        "thresholds": {
            "image": thresholds.image,
            "pixel": thresholds.pixel,
            "image_normalised": 0.5,
            "pixel_normalised": 0.5,
            "image_scale": scale,
            "rule": "anomalous where score >= threshold" if calibrated else "anomalous where score > threshold",
            "source": thresholds.source,
        },
        "score": score or "pred_score",
        "p_value": "(1 + number of calibration scores >= score) / (1 + number of calibration scores)"
        if calibrated
        else None,
        "calibration": calibrated,
        # What the watch for drift compares photos with: means of the training images' leave-one-out anomaly maps, raw.
        "drift": {"map_means": map_means, "pixel_scale": pixel_scale} if map_means else None,
        "model": describe_model(padim),
        "weights": padim.weights.as_dict(),
        "seed": metrics.get("seed", padim.seed),
        "experiment": metrics.get("experiment"),
        "data": metrics.get("data"),
        "metrics": {name: value for name, value in metrics.items() if name.startswith(("image_", "pixel_"))},
        "versions": {"training": metrics.get("versions"), "export": versions()},
    }


def write_card(folder: Path, model_format: str, card: dict[str, Any]) -> dict[str, Any]:
    """Write the card of the exported files in a folder, with their digests, and return it."""
    files = {path.name: sha256(path) for path in sorted(folder.iterdir()) if path.name != CARD}
    card = {"card_version": CARD_VERSION, "format": model_format, "files": files, **card}
    (folder / CARD).write_text(json.dumps(card, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return card


def read_card(folder: Path) -> dict[str, Any]:
    """Read a card and check that the files it names are there and are the ones it was written for.

    Raises:
        UserError: the card is none of ours, or a file is missing, changed or cut short.
    """
    path = folder / CARD
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"Cannot read the model card {path}: {error}.") from error
    if not _is_card(card):
        raise UserError(f"{path} is no model card of version {CARD_VERSION} as scripts/export.py writes it.")
    for name, digest in card["files"].items():
        file = folder / name
        if not file.is_file():
            raise UserError(f"{folder} is not a whole model: {name} is missing. Export it again.")
        if sha256(file) != digest:
            raise UserError(
                f"{file} is refused: it is not the file that {CARD} was written for (changed, truncated or from "
                "another model). Export it again."
            )
    return card


def _is_card(card: Any) -> bool:
    try:
        return (
            card["card_version"] == CARD_VERSION
            and MODEL_FILES[card["format"]] in card["files"]
            # A card from a stranger may not lead out of its folder.
            and all(Path(name).name == name and isinstance(digest, str) for name, digest in card["files"].items())
            and math.isfinite(card["thresholds"]["image"])
            and math.isfinite(card["thresholds"]["image_scale"] or 0)
            and isinstance(card["openvino_settings"], dict)
        )
    except (KeyError, TypeError, AttributeError):
        return False
