"""Which evidence the verdict takes so that it agrees with the outline: false alarms and recall of three rules.

Models are fitted to two thirds of bottle's training photos, at random, and shown the others: as they are, and with a
synthetic anomaly each. No test photo is opened.

    score: alarm where the image score reaches its threshold; outlines are drawn on alarms alone.
    pixel: alarm where a pixel reaches the pixel threshold, so that an outline is an alarm.
    largest pixel: alarm where the largest pixel reaches a threshold calibrated for it.

    python benchmarks/regions.py                                      # both configs, some minutes
"""

import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from record import new_benchmark_parser, write_record
from rich.console import Console

from padim_bottle.console import quiet
from padim_bottle.data.defects import AnomalySettings
from padim_bottle.evaluation.regions import HIGHEST, called_pixels
from padim_bottle.experiment.config import ExperimentConfig
from padim_bottle.model.calibration import calibrate
from padim_bottle.model.parts import Parts
from padim_bottle.model.rule import Rule
from padim_bottle.tune.measure import build_model, fabric_of, training_paths
from padim_bottle.tune.training_photos import PhotoFeatures, TrainingPhotos

if TYPE_CHECKING:
    from padim_bottle.tables import Table

CONFIGS = ("configs/padim_resnet18.yaml", "configs/padim_resnet18_grids.yaml")
ALPHA = 0.05
QUANTILE = 0.9995
HELD_OUT = 70


def measure(configs: Sequence[Path], splits: int) -> dict[str, Any]:
    """Return counts of each config over all splits."""
    experiments = {config.stem: ExperimentConfig(config) for config in configs}
    fabric = fabric_of(next(iter(experiments.values())))
    paths = training_paths(next(iter(experiments.values())))
    measured = {}
    for name, experiment in experiments.items():
        model = build_model(experiment, seed=42)
        network = model.model
        network.damped = False  # by the verdict: here the map is to speak for itself
        photos = TrainingPhotos(paths, AnomalySettings(), model.pre_processor.transform)
        features = PhotoFeatures(photos, network.feature_extractor, fabric, Path(tempfile.gettempdir()), lambda _: None)
        found = []
        for split in range(splits):
            order = np.random.default_rng(split).permutation(len(paths))
            held_out, fitted = np.sort(order[:HELD_OUT]), np.sort(order[HELD_OUT:])
            network.reset()
            for _, images, recorded in features.batches(fitted, network.layers, fabric.device):
                network.collect(recorded, images)
            calibration = network.fit_and_calibrate(QUANTILE)
            plain = calibrate(
                network.leave_one_out_maps,
                Parts.of_photos([""] * len(fitted), None),
                pixel_quantile=QUANTILE,
                position_calibration=False,
            )
            shown = np.concatenate([held_out, held_out + len(paths)])
            with torch.inference_mode():
                outputs = [
                    network.score(recorded, images)
                    for _, images, recorded in features.batches(shown, network.layers, fabric.device)
                ]
            scores = torch.cat([output.pred_score.flatten() for output in outputs]).numpy()
            maps = torch.cat([output.anomaly_map[:, 0] for output in outputs]).numpy()
            thresholds = [Rule.calibrated(of.scores, ALPHA).threshold for of in (calibration, plain)]
            found.append(count(scores, maps, features.masks(shown), *thresholds, float(calibration.pixel_threshold)))
        measured[name] = {key: sum(of[key] for of in found) for key in found[0]}
    return measured


def count(
    scores: np.ndarray, maps: np.ndarray, masks: np.ndarray, threshold: float, largest: float, pixel: float
) -> dict[str, int]:
    """Return how often each rule alarms in n good photos and in n damaged ones, which follow, and where it points."""
    good = np.arange(len(scores)) < len(scores) // 2
    highest = maps.max(axis=(1, 2))
    alarms = {"score": scores >= threshold, "pixel": highest >= pixel, "largest pixel": highest >= largest}
    counted = {"good": int(good.sum()), "damaged": int((~good & masks.any(axis=(1, 2))).sum())}
    for rule, called in alarms.items():
        counted |= {f"{rule}: false alarms": int(called[good].sum()), f"{rule}: found": int(called[~good].sum())}
    counted["good photos that pass with a pixel above"] = int((good & ~alarms["score"] & alarms["pixel"]).sum())
    without = np.flatnonzero(~good & alarms["score"] & ~alarms["pixel"])
    hits = [(called_pixels(maps[number], True, pixel) & masks[number]).any() for number in without]
    return {**counted, "found without a pixel above": len(hits), "and pointed at": int(sum(hits))}


def tables(record: dict[str, Any]) -> list["Table"]:
    """Return what the docs show."""
    from padim_bottle.tables import Row, Table

    rules = ("score", "pixel", "largest pixel")
    rows = [
        Row([name, rule, f"{of[f'{rule}: false alarms']} of {of['good']}", f"{of[f'{rule}: found']} of {of['good']}"])
        for name, of in record["counts"].items()
        for rule in rules
    ]
    return [Table(["model", "alarm by", "false alarms", "anomalies found"], rows, texts=2)]


if __name__ == "__main__":
    parser = new_benchmark_parser(__doc__)
    parser.add_argument("--splits", type=int, default=8, help="random splits (default: %(default)s)")
    options = parser.parse_args()
    quiet()
    logging.getLogger("padim_bottle.model").setLevel(logging.ERROR)
    counts = measure(list(map(Path, CONFIGS)), options.splits)
    record = {"alpha": ALPHA, "held_out": HELD_OUT, "splits": options.splits, "highest": HIGHEST, "counts": counts}
    for table in tables(record):
        Console().print(table.screen())
    write_record(options.output, "regions", record)
