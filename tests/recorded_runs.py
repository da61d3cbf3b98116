"""Finished runs, written as ``ResultsWriter`` writes them, without training anything."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from padim_bottle.evaluation.metrics import evaluate
from padim_bottle.evaluation.predictions import Predictions, Thresholds, predictions_table
from padim_bottle.heat import HeatmapScale, overlay
from padim_bottle.model.rule import Rule
from padim_bottle.runs.figure_data import DATA_FILE, save_data
from padim_bottle.runs.folder import strip_path

SIDE = 32
TYPES = {"good": 8, "broken_large": 5, "contamination": 6}


def write_run(
    folder: Path,
    types: dict[str, int] = TYPES,
    *,
    training: int = 30,
    alpha: float = 0.1,
    real: bool = False,
    pictures: bool = True,
    data: bool = True,
    seed: int = 0,
    experiment: str = "an_experiment",
    pixels: bool = True,
    threshold: float | None = None,
) -> Path:
    """Write a run of made-up scores; without training images it has no calibration, and the threshold that is given."""
    rng = np.random.default_rng(seed)
    names = [name for name, count in types.items() for _ in range(count)]
    labels = np.array(names) != "good"
    # Rounded, so that there are ties; types overlap with the good images.
    scores = np.round(rng.gamma(4, 1.2, len(names)) * np.where(labels, 2.0, 1.0) * 2) / 2 + 1
    masks = np.zeros((len(names), SIDE, SIDE), dtype=bool)
    masks[labels, 4:14, 6:12] = True
    maps = rng.gamma(3, 1, masks.shape).astype(np.float32) + 3 * masks.astype(np.float32)
    paths = [f"/data/test/{name}/{i:03}.png" for i, name in enumerate(names)]
    predictions = Predictions(paths, names, labels, scores, *([maps, masks] if pixels else []))
    calibration = np.sort(rng.gamma(4, 1.2, training).astype(np.float32) + 1)
    rule = Rule.calibrated(calibration, alpha) if training else None
    image = rule.threshold if training else threshold
    pixel = 6.0 if training else None
    source = f"leave-one-out scores of the training images, alpha = {alpha:g}" if training else "none"
    thresholds = Thresholds(image, pixel, source)
    p_values = rule.p_values(scores) if training else None
    metrics = {
        "experiment": experiment,
        "seed": seed,
        "data": {
            "name": "MVTec AD" if real else "synthetic bottles",
            "category": "bottle",
            "synthetic": not real,
            "train_images": training,
            "test_images": len(names),
            "fingerprint": "0" * 64,
        },
        "weights": {"name": "resnet18.tv_in1k", "source": "folder" if real else "random", "sha256": None},
        "model": {"class": "padim_bottle.Padim", "image_size": [SIDE, SIDE]},
        **evaluate(predictions, thresholds),
        "calibration": {
            "alpha": alpha,
            "position_calibration": True,
            "training_images": training,
            "scores": [float(score) for score in calibration],
        }
        if training
        else None,
        "seconds": {},
        "peak_memory_bytes": {"process": 1, "largest_worker": 1, "gpu": None},
        "checkpoint_bytes": 1,
        "device": {"name": "cpu", "threads": 2},
        "versions": {"python": "3.11"},
        "git_commit": None,
        "config_sha256": "1" * 64,
    }
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(metrics, allow_nan=False))
    predictions_table(predictions, thresholds, p_values).to_csv(folder / "predictions.csv", index=False)
    if data:
        extent = (SIDE, SIDE) if training else (0,)
        save_data(
            folder / DATA_FILE,
            predictions,
            thresholds,
            scored_mean=np.ones(extent, np.float32),
            scored_std=np.full(extent, 0.5, np.float32),
        )
    if pictures:
        scale = HeatmapScale.from_threshold(6.0, 3.0)
        for i, path in enumerate(predictions.image_paths):
            photograph = rng.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
            strip = strip_path(Path("images", names[i], f"{Path(path).stem}.png"))
            write_panels(folder / strip, photograph, scale.colours(maps[i]))
    return folder


def write_panels(path: Path, photograph: np.ndarray, heat: np.ndarray) -> None:
    """Write photograph, map and decision side by side, as a run keeps them for its report."""
    strip = np.hstack([photograph, overlay(photograph, heat), photograph]).repeat(7, axis=0).repeat(7, axis=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(strip).save(path, quality=85)


def add_training_photos(folder: Path, copies: list[list[str]] = (), parts: bool = False) -> Path:
    """Add what a run records of its training photos; their scores are those of the calibration."""
    metrics = json.loads((folder / "metrics.json").read_text())
    scores = metrics["calibration"]["scores"]
    names = [f"{i:03}.png" for i in range(len(scores))]
    table = pd.DataFrame(
        {
            "image_path": [f"/photos/{name}" for name in names],
            "part": [i // 2 if parts else i for i in range(len(names))],
            "score": scores,
            "p_value": Rule.calibrated(scores, 0.5).p_values_of_calibration(scores),
        }
    )
    table.sample(frac=1, random_state=0).to_csv(folder / "training_photos.csv", index=False)
    photograph = np.full((SIDE, SIDE, 3), 90, dtype=np.uint8)
    heat = HeatmapScale(0.0, 2.0).colours(np.ones((SIDE, SIDE)))
    for name in names:
        write_panels(folder / strip_path(Path("images", "train", name)), photograph, heat)
    metrics["calibration"]["copies"] = list(copies)
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return folder


def without_test_images(folder: Path) -> Path:
    """Turn a run into one that had no test images."""
    metrics = json.loads((folder / "metrics.json").read_text())
    for name, value in metrics.items():
        if isinstance(value, float) or name in ("confusion_matrix", "images"):
            metrics[name] = None
    metrics["thresholds"] |= {"image_F1Max": None, "pixel_F1Max": None}
    metrics["per_defect"], metrics["data"]["test_images"] = {}, 0
    (folder / "metrics.json").write_text(json.dumps(metrics))
    (folder / "predictions.csv").unlink()
    save_data(
        folder / DATA_FILE, None, Thresholds(None, None, "none"), np.ones((SIDE, SIDE)), np.full((SIDE, SIDE), 0.5)
    )
    return folder
