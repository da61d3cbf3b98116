"""Measure every setting of a grid on synthetic anomalies in held-out training photos."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from anomalib.pre_processing import PreProcessor
from lightning.fabric import Fabric
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import instantiate_class
from torchvision.transforms.v2 import Transform

from padim_bottle.console import errors_alone
from padim_bottle.data.layout import GOOD
from padim_bottle.data.mvtec import MVTecAD
from padim_bottle.data.photos import Photos
from padim_bottle.errors import UserError, in_a_line
from padim_bottle.evaluation.metrics import evaluate
from padim_bottle.evaluation.predictions import Predictions, Thresholds
from padim_bottle.experiment.config import ExperimentConfig
from padim_bottle.experiment.variants import Variant
from padim_bottle.model.backbone import feature_layers
from padim_bottle.model.extractor import FrozenBackbone
from padim_bottle.model.padim import Padim
from padim_bottle.model.parts import Parts
from padim_bottle.runs.record import area_of
from padim_bottle.tune.settings import METRICS, TuneSettings
from padim_bottle.tune.training_photos import PhotoFeatures, TrainingPhotos

Advance = Callable[[int], None]
# At the model's own threshold; told, and not chosen by.
_AT_THRESHOLD = ("image_recall", "image_false_alarm_rate")
_FEWEST_PARTS = 6
# Those in which the backbone alone computes with fewer digits.
_PRECISIONS = ("None", "32", "32-true", "bf16-mixed", "16-mixed")


@dataclass(frozen=True)
class Split:
    """Photos that are fitted, and images that are shown: good photos by their number i, damaged ones by N + i."""

    fitted: np.ndarray
    shown: np.ndarray


def training_paths(cli: ExperimentConfig) -> list[Path]:
    """Return the training photos of a config, and fetch the data if they are not there; no test photo is opened.

    Raises:
        UserError: data of another kind, or none to be had.
    """
    data = instantiate_class((), cli.settings.data.as_dict())
    if not isinstance(data, (MVTecAD, Photos)):
        raise UserError(
            f"data: {cli.settings.data.class_path} cannot be tuned on; padim_bottle.MVTecAD can, and --photos FOLDER."
        )
    if isinstance(data, MVTecAD) and not Path(data.root, data.category).is_dir():
        data.prepare_data()
    data.setup()  # lists them
    return [Path(path) for path in data.train_data.samples["image_path"]]


def make_splits(paths: Sequence[Path], groups: Sequence[str | None], settings: TuneSettings) -> list[Split]:
    """Hold out a share of the photos at random, as often as the settings say; half of it, at random, gets anomalies.

    Args:
        paths: the photos.
        groups: see ``group`` of Padim; photos that any of these takes for one part stay together, so that all settings
            have the same splits.
        settings: of the tuning.

    Raises:
        UserError: too few photos.
    """
    parts, *others = (Parts.of_photos([str(path) for path in paths], group) for group in dict.fromkeys(groups))
    for other in others:
        parts = parts.joined((other.names.index(name), index) for index, name in enumerate(other.names))
    part_of_photo = np.unique(np.array(parts.names), return_inverse=True)[1]
    held_out = round(len(parts) * settings.held_out)
    if len(parts) < _FEWEST_PARTS or held_out < 2 or len(parts) - held_out < 3:
        raise UserError(
            f"{len(parts)} parts are too few to hold out {settings.held_out:.2g} of them: it takes 2 or more to test "
            "on and 3 or more to fit."
        )
    splits = []
    for number in range(settings.splits):
        rng = np.random.default_rng([settings.anomalies.seed, 1 << 20, number])
        chosen = rng.permutation(len(parts))[:held_out]
        good, damaged = chosen[: held_out // 2], chosen[held_out // 2 :]
        shown = [np.flatnonzero(np.isin(part_of_photo, part)) for part in (good, damaged)]
        fitted = np.flatnonzero(~np.isin(part_of_photo, chosen))
        splits.append(Split(fitted, np.concatenate([shown[0], shown[1] + len(paths)])))
    return splits


def measure(
    candidates: Sequence[Variant], settings: TuneSettings, track: Callable[[str, int], Advance]
) -> pd.DataFrame:
    """Fit and score every setting on every split with every seed, with one pass of the photos through each backbone.

    Args:
        candidates: the settings, of one config.
        settings: splits, seeds and anomalies.
        track: called with what is done next and how much of it; returns what to call with what was done.

    Returns:
        A row a fit: setting (its number), split, seed (missing where the model draws nothing), seconds, ``METRICS``,
        and recall and rate of false alarms at the model's own threshold.

    Raises:
        UserError: values that a model does not accept, data that cannot be had, too few photos.
    """
    paths = training_paths(candidates[0].experiment)
    needs = [_Needs.of(build_model(candidate.experiment, settings.seeds[0])) for candidate in candidates]
    # Seeds of a model that draws nothing would be the same fit again.
    seeds = [settings.seeds if need.is_random else settings.seeds[:1] for need in needs]
    splits = make_splits(paths, [need.group for need in needs], settings)
    fabric = fabric_of(candidates[0].experiment)
    # Not the system's temporary folder, which may be in memory.
    folder = Path(settings.cache_folder or settings.results)
    passes = list(dict.fromkeys(need.backbone for need in needs))
    advance_photos = track("photos", 2 * len(paths) * len(passes))
    advance_fits = track("fits", sum(map(len, seeds)) * len(splits))
    rows = []
    with errors_alone("padim_bottle.model"):  # of few photos and of copies training says so
        for backbone in passes:
            sharing = [number for number, need in enumerate(needs) if need.backbone == backbone]
            first = build_model(candidates[sharing[0]].experiment, settings.seeds[0])
            photos = TrainingPhotos(paths, settings.anomalies, _transform(first))
            network = _network(first, {layer for number in sharing for layer in needs[number].layers})
            features = PhotoFeatures(photos, network, fabric, folder, advance_photos)
            for number in sharing:
                for seed in seeds[number]:
                    model = build_model(candidates[number].experiment, seed)
                    for split_number, split in enumerate(splits):
                        started = time.perf_counter()
                        figures = _fit_and_score(model, features, photos, split, fabric.device)
                        rows.append(
                            {
                                "setting": number,
                                "split": split_number,
                                "seed": seed if needs[number].is_random else None,
                                "seconds": time.perf_counter() - started,
                                **figures,
                            }
                        )
                        advance_fits(1)
            del features  # and their files, before the next backbone's
    return pd.DataFrame(rows).astype({"seed": "Int64"})


def build_model(cli: ExperimentConfig, seed: int) -> Padim:
    """Build the model of a config with another seed.

    Raises:
        UserError: a value that it does not accept.
    """
    settings = cli.settings.model.as_dict()
    settings["init_args"] = {**settings["init_args"], "seed": seed, "evaluator": False, "visualizer": False}
    model: Padim = instantiate_class((), settings)
    return model


@dataclass(frozen=True)
class _Needs:
    """What must be known of a setting's model before it is fitted.

    Attributes:
        backbone: what decides the features: settings that agree in it share a pass.
        layers: of the backbone.
        group: see Padim.
        is_random: whether a seed decides anything.
    """

    backbone: tuple[str, ...]
    layers: tuple[str, ...]
    group: str | None
    is_random: bool

    @classmethod
    def of(cls, model: Padim) -> "_Needs":
        backbone = (model.model.backbone, model.weights.source, repr(_transform(model)))
        return cls(backbone, tuple(model.model.layers), model.group, bool(model.model.is_random))


def _transform(model: Padim) -> Transform:
    """Return what resizes and normalises photos for a model."""
    if not isinstance(model.pre_processor, PreProcessor) or model.pre_processor.transform is None:
        raise UserError("pre_processor: tuning needs one that resizes and normalises; leave it out.")
    return model.pre_processor.transform


def _network(model: Padim, wanted: set[str]) -> FrozenBackbone:
    """Return the backbone of a model with all layers that are wanted."""
    layers = [layer for layer in feature_layers(model.model.backbone) if layer in wanted]
    if layers == model.model.layers:
        return model.model.feature_extractor
    own = model.model.feature_extractor
    return FrozenBackbone(own.backbone, layers, model.weights.source != "random", own.image_size)


def _fit_and_score(
    model: Padim, features: PhotoFeatures, photos: TrainingPhotos, split: Split, device: torch.device
) -> dict[str, float | None]:
    """Fit a model to the fitted photos of a split and return its metrics on the shown ones."""
    model.to(device).on_train_start()
    layers = model.model.layers
    for chosen, images, recorded in features.batches(split.fitted, layers, device):
        model.collect(recorded, images, [str(photos.paths[number]) for number in chosen])
    model.fit()
    count = len(photos.paths)
    scores, maps = [], []
    with torch.inference_mode():
        for _, images, recorded in features.batches(split.shown, layers, device):
            output = model.model.score(recorded, images)
            scores.append(output.pred_score.flatten().cpu())
            maps.append(output.anomaly_map[:, 0].cpu())
    types = [photos.kind(index - count) if index >= count else GOOD for index in split.shown.tolist()]
    predictions = Predictions(
        image_paths=[str(photos.paths[index % count]) for index in split.shown],
        defect_types=types,
        labels=np.array(types) != GOOD,
        scores=torch.cat(scores).numpy(),
        anomaly_maps=torch.cat(maps).float().numpy(),
        masks=features.masks(split.shown),
        area=area_of(model),
    )
    rule = getattr(model.post_processor, "rule", None)
    metrics = evaluate(predictions, Thresholds(rule and rule.threshold, None, "leave-one-out"))
    return {name: metrics[name] for name in (*METRICS, *_AT_THRESHOLD)}


def fabric_of(experiment: ExperimentConfig) -> Fabric:
    """Return the device and the precision with which a config's Trainer computes.

    Raises:
        UserError: there is no such device, or the statistics would be computed in that precision, too.
    """
    trainer = experiment.settings.trainer
    if str(trainer.precision) not in _PRECISIONS:
        raise UserError(
            f"trainer.precision: {trainer.precision} cannot be tuned with, {', '.join(_PRECISIONS[2:])} can."
        )
    try:
        return Fabric(accelerator=trainer.accelerator, devices=1, precision=trainer.precision)
    except (MisconfigurationException, RuntimeError, ValueError) as error:
        raise UserError(f"trainer: {in_a_line(error)}.") from error
