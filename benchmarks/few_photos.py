"""How few photos do: recall and false alarms of models of 5 to 200 bottles, for several values of prior_freedom.

Models are fitted to random subsets of the training photos and shown the photos that they were not fitted to: as they
are, and with a synthetic anomaly each. By those prior_freedom is chosen. The test photos are judged as well, for the
table in docs/threshold.md; nothing is chosen by them.

    python benchmarks/few_photos.py                                   # both configs, some minutes
"""

import json
import logging
import tempfile
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from record import new_benchmark_parser, write_record

from padim_bottle.console import quiet
from padim_bottle.data.defects import AnomalySettings
from padim_bottle.data.images import read_image
from padim_bottle.data.listing import list_photos
from padim_bottle.errors import UserError
from padim_bottle.experiment.config import ExperimentConfig
from padim_bottle.model.calibration import Calibration
from padim_bottle.model.network import PadimModel
from padim_bottle.model.parts import Parts
from padim_bottle.model.rule import Rule
from padim_bottle.tables import Row, Table
from padim_bottle.tune.measure import build_model, fabric_of, training_paths
from padim_bottle.tune.training_photos import PhotoFeatures, TrainingPhotos

CONFIGS = ("configs/padim_resnet18.yaml", "configs/padim_resnet18_grids.yaml")
COUNTS = (5, 10, 20, 40, 100, 200)
PRIORS = (0.0, 3.0, 10.0, 30.0, 100.0)
PLAIN, DEFAULT = "plain maximum", "prior_freedom 10"
NAMES = {"padim_resnet18": "paper's", "padim_resnet18_grids": "two grids"}
ALPHA = 0.05
# Photos that a model was not fitted to, of which it is shown so many, or all that there are.
HELD_OUT = 40

Batches = list[tuple[torch.Tensor, dict[str, torch.Tensor]]]


def scored_by(network: PadimModel, batches: Iterator[Any]) -> torch.Tensor:
    """Return (n, h, w), of which the largest value is the score of recorded batches: maps, or distances."""
    with torch.inference_mode():
        return torch.cat(
            [
                network.score(features, images).anomaly_map[:, 0]
                if network.scores_map
                else network.grids[-1].distance(features)
                for *_, images, features in batches
            ]
        )


def called(scored: torch.Tensor, calibration: Calibration, plain: bool) -> np.ndarray:
    """Return which images a calibrated model calls anomalous, by what is scored of them (n, h, w)."""
    standard = scored if plain else (scored - calibration.scored_mean) / calibration.scored_std
    return standard.flatten(1).amax(1).numpy() >= Rule.calibrated(calibration.scores, ALPHA).threshold


def measure(configs: Sequence[Path], counts: Sequence[int], subsets: int) -> Iterator[dict[str, Any]]:
    """Yield a row a config, subset and score, with the shares of images that are called anomalous."""
    experiments = {config.stem: ExperimentConfig(config) for config in configs}
    models = {name: build_model(experiment, seed=42) for name, experiment in experiments.items()}
    first, fabric = next(iter(models.values())), fabric_of(next(iter(experiments.values())))
    if any(model.model.layers != first.model.layers for model in models.values()):
        raise UserError("The configs must look at the same layers: the photos pass through one backbone once.")
    paths = training_paths(next(iter(experiments.values())))
    transform = first.pre_processor.transform
    photos = TrainingPhotos(paths, AnomalySettings(), transform)
    features = PhotoFeatures(photos, first.model.feature_extractor, fabric, Path(tempfile.gettempdir()), lambda _: None)
    test = list_photos(paths[0].parents[2] / "test").photos
    good = np.array([path.parent.name == "good" for path in test])
    tested: Batches = []
    for start in range(0, len(test), 8):
        pixels = [torch.from_numpy(read_image(path)).permute(2, 0, 1).float() / 255 for path in test[start : start + 8]]
        images = torch.stack([transform(image) for image in pixels])
        tested.append((images, first.model.features(images)))
    for count, subset, (name, model) in product(counts, range(subsets), models.items()):
        network = model.model
        order = np.random.default_rng([count, subset]).permutation(len(paths))
        fitted, held_out = np.sort(order[:count]), order[count : count + HELD_OUT]
        network.reset()
        for _, images, recorded in features.batches(fitted, network.layers, fabric.device):
            network.collect(recorded, images)
        network.fit_and_calibrate(0.9995)
        shown = np.concatenate([held_out, held_out + len(paths)])
        scored = scored_by(network, features.batches(shown, network.layers, fabric.device))
        test_scored = scored_by(network, iter(tested))
        for prior in (*PRIORS, PLAIN):
            network.position_calibration = prior != PLAIN
            network.prior_freedom = 0.0 if isinstance(prior, str) else prior
            calibration = network.calibrate(0.9995, Parts.of_photos([""] * count, None))
            of_shown, of_test = (called(values, calibration, prior == PLAIN) for values in (scored, test_scored))
            yield {
                "config": name,
                "photos": count,
                "subset": subset,
                "score": prior if isinstance(prior, str) else f"prior_freedom {prior:g}",
                "false_alarms": float(of_shown[: len(held_out)].mean()),
                "synthetic_recall": float(of_shown[len(held_out) :].mean()),
                "test_false_alarms": float(of_test[good].mean()),
                "test_recall": float(of_test[~good].mean()),
            }


def summarise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the means over the subsets, and the lowest and the highest recall and rate of false alarms."""
    groups = pd.DataFrame(rows).groupby(["config", "photos", "score"], sort=False)
    table = groups.mean(numeric_only=True).drop(columns="subset")
    for figure in ("test_recall", "false_alarms"):
        table[f"lowest_{figure}"], table[f"highest_{figure}"] = groups[figure].min(), groups[figure].max()
    return table.round(4).reset_index().to_dict("records")


def table(record: dict[str, Any]) -> Table:
    """Return what the docs show: recall and false alarms, means over the subsets, and the ranges of the default."""
    means = {(row["config"], row["photos"], row["score"]): row for row in record["means"]}

    def cell(row: dict[str, Any], ranges: bool) -> str:
        parts = []
        for figure in ("test_recall", "false_alarms"):
            mean, low, high = (f"{100 * row[name]:.0f}" for name in (figure, f"lowest_{figure}", f"highest_{figure}"))
            parts.append(f"{mean} % ({low} to {high})" if ranges and low != high else f"{mean} %")
        return " / ".join(parts)

    scores = {"no moderation": "prior_freedom 0", "`prior_freedom: 10`": DEFAULT, PLAIN: PLAIN}
    rows = [
        Row([name, str(count), *(cell(means[config, count, score], score == DEFAULT) for score in scores.values())])
        for config, name in NAMES.items()
        for count in sorted({row["photos"] for row in record["means"]})
    ]
    return Table(["model", "N", *scores], rows)


if __name__ == "__main__":
    parser = new_benchmark_parser(__doc__)
    parser.set_defaults(output=Path("results/reference/tuning"))
    parser.add_argument("--subsets", type=int, default=3, help="random subsets of each size (%(default)s)")
    parser.add_argument("--photos", type=int, nargs="+", default=COUNTS, help="sizes (%(default)s)")
    options = parser.parse_args()
    quiet()
    logging.getLogger("padim_bottle.model").setLevel(logging.ERROR)  # of few photos
    found = []
    for row in measure(list(map(Path, CONFIGS)), options.photos, options.subsets):
        found.append(row)
        print(json.dumps(row), flush=True)
    write_record(
        options.output,
        "few_photos",
        {"alpha": ALPHA, "subsets": options.subsets, "held_out": HELD_OUT, "means": summarise(found), "fits": found},
    )
