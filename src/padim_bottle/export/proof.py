"""The proof of an export: the same photos, judged by the checkpoint and by the exported models."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from anomalib.data import AnomalibDataModule
from jsonargparse import ArgumentError, ArgumentParser
from numpy.typing import NDArray
from rich.console import Console
from torchvision.transforms.v2 import Resize
from torchvision.tv_tensors import Image, Mask

from padim_bottle.data.images import read_mask
from padim_bottle.data.joint_transform import transform_together
from padim_bottle.data.listing import find_photos
from padim_bottle.errors import UserError, in_a_line
from padim_bottle.evaluation.metrics import evaluate
from padim_bottle.evaluation.predictions import GOOD, Predictions, Thresholds
from padim_bottle.predict.checkpoint import load_padim
from padim_bottle.predict.judge import judge
from padim_bottle.predict.predictor import ImagePrediction, Predictor, load_predictor, read_metrics
from padim_bottle.runs.record import area_of
from padim_bottle.tables import Row, Table, figure

SCORE_TOLERANCE = 1e-3
# How far exported models may resize pixels from the checkpoint's, of 0 to 1.
RESIZING = 3e-6
# What a model of a lower precision may lose.
LOSSES = {"image_AUROC": 0.001, "pixel_AUROC": 0.002}
CHECKPOINT = "checkpoint"
COMPARED = (
    "image_AUROC", "image_AUPR", "image_F1Max", "image_F1Score", "pixel_AUROC", "pixel_AUPR", "pixel_AUPRO",
    "pixel_F1Max", "pixel_F1Score",
)  # fmt: skip


@dataclass(frozen=True)
class ProofPhotos:
    """Photos to judge, in order, and where there is ground truth the mask of each (None for a good one)."""

    paths: list[Path]
    masks: list[Path | None] | None


def find_proof_photos(run: Path, folder: Path | None) -> ProofPhotos:
    """Return the photos of a folder, or without one the test images that the run's ``config.yaml`` names.

    Of a run without test images they are its training photos.

    Raises:
        UserError: there are none.
    """
    if folder is not None:
        return ProofPhotos(find_photos([str(folder)]).checked().photos, None)
    datamodule = _datamodule(run, "name a folder of photos with --images")
    samples = datamodule.test_data.samples
    if samples.empty:
        return ProofPhotos(_paths(datamodule.train_data.samples), None)
    masks = [Path(str(row.mask_path)) if row.label_index else None for row in samples.itertuples()]
    # A defect without a mask leaves nothing to measure pixels by.
    known = all(mask is None or mask.is_file() for mask in masks)
    return ProofPhotos(_paths(samples), masks if known else None)


def find_training_photos(run: Path) -> list[Path]:
    """Return the photos that a run was trained on, in its order, as its ``config.yaml`` names them.

    Raises:
        UserError: they cannot be found.
    """
    return _paths(_datamodule(run, "they are needed to fit a model of another precision").train_data.samples)


def _datamodule(run: Path, remedy: str) -> Any:
    """Return the data that the run's ``config.yaml`` describes, ready to use."""
    parser = ArgumentParser(exit_on_error=False)
    # Classes of other kinds are not made, even if the file names them.
    parser.add_subclass_arguments(AnomalibDataModule, "data")
    try:
        config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
        datamodule = parser.instantiate_classes(parser.parse_object({"data": config["data"]})).data
        datamodule.prepare_data()
        datamodule.setup()
    except (OSError, KeyError, TypeError, ValueError, ArgumentError, yaml.YAMLError, UserError) as error:
        raise UserError(f"The images of {run} cannot be found ({in_a_line(error)}): {remedy}.") from error
    return datamodule


def _paths(samples: Any) -> list[Path]:
    return [Path(path) for path in samples["image_path"]]


def prove(
    checkpoint: Path, folders: Mapping[str, Path], photos: ProofPhotos, precision: str = "float32"
) -> dict[str, Any]:
    """Judge photos with a checkpoint and with the models exported from it.

    Args:
        checkpoint: the ``.ckpt`` file.
        folders: the exported models by format.
        photos: what to judge.
        precision: of the exported models. Those of the checkpoint's must judge alike, as far as it judges photos alike
            whose pixels differ by ``RESIZING``: where a background never varies, nothing is left to divide a rounding
            by. Others may lose ``LOSSES``, and without ground truth their verdicts must be equal.

    Returns:
        The report, ready for JSON: ``passed``, the largest ``differences`` of each format, and the ``metrics`` of
        each beside the run's own, where there is ground truth.

    Raises:
        UserError: a photo or a model cannot be read.
    """
    reference, area = load_predictor(checkpoint), None
    if photos.masks is not None and reference.card["model"].get("region"):
        area = area_of(load_padim(checkpoint))
    expected = _predict(reference, photos)
    tolerance = SCORE_TOLERANCE
    if precision == "float32":
        rounded = _predict(_disturbed(reference), photos)
        tolerance = max(tolerance, differences(expected, rounded)["normalised_score"] or 0)
    metrics = {}
    own = read_metrics(checkpoint.parent)
    if photos.masks is not None:
        if own is not None:
            metrics["run"] = {name: own.get(name) for name in COMPARED}
        metrics[CHECKPOINT] = _metrics(reference, expected, photos, area)
    formats = {}
    for name, folder in folders.items():
        predictor = load_predictor(folder)
        predictor.size = None  # whole photos, as other programs give them to the model
        actual = _predict(predictor, photos)
        formats[name] = {
            "folder": str(folder),
            "bytes": sum(file.stat().st_size for file in folder.iterdir()),
            **differences(expected, actual),
        }
        if photos.masks is not None:
            metrics[name] = _metrics(predictor, actual, photos, area)
            formats[name]["metrics"] = max(
                abs(metrics[name][key] - value) for key, value in metrics[CHECKPOINT].items() if value is not None
            )
        if precision == "float32":
            formats[name]["proven"] = proven(formats[name], tolerance)
        elif photos.masks is None:
            formats[name]["proven"] = formats[name]["verdicts"] == 0
        else:
            formats[name]["proven"] = all(
                (metrics[CHECKPOINT][key] or 0) - (metrics[name][key] or 0) <= loss for key, loss in LOSSES.items()
            )
    return {
        "passed": all(found["proven"] for found in formats.values()),
        "precision": precision,
        "tolerance": {"normalised_score": tolerance, "verdicts": 0} if precision == "float32" else LOSSES,
        "checkpoint": {"path": str(checkpoint), "bytes": checkpoint.stat().st_size},
        "photos": len(photos.paths),
        "differences": formats,
        "metrics": metrics,
    }


def proven(found: Mapping[str, Any], tolerance: float = SCORE_TOLERANCE) -> bool:
    """Whether differences are small enough: all finite, verdicts the same, normalised scores within the tolerance."""
    finite = all(value is None or math.isfinite(value) for value in found.values() if not isinstance(value, str))
    return finite and found["verdicts"] == 0 and found["normalised_score"] <= tolerance


def differences(expected: list[ImagePrediction], actual: list[ImagePrediction]) -> dict[str, float | int | None]:
    """Return the largest differences between two models' predictions of the same photos."""

    def largest(of: str) -> float:
        # NumPy's maximum, unlike Python's, of anything and NaN is NaN.
        return float(np.max([np.abs(np.subtract(getattr(a, of), getattr(b, of))).max() for a, b in pairs]))

    pairs = list(zip(expected, actual, strict=True))
    calibrated = all(prediction.p_value is not None for pair in pairs for prediction in pair)
    return {
        "verdicts": sum(a.anomalous != b.anomalous for a, b in pairs),
        "normalised_score": largest("normalised_score"),
        "score": largest("score"),
        "p_value": largest("p_value") if calibrated else None,
        "anomaly_map": largest("anomaly_map"),
        "mask_pixels": sum(int((a.mask != b.mask).sum()) for a, b in pairs),
    }


def _predict(predictor: Predictor, photos: ProofPhotos) -> list[ImagePrediction]:
    predictions = []
    for _, outcome in judge(predictor, photos.paths, batch_size=8):
        if isinstance(outcome, UserError):
            raise outcome
        predictions.append(outcome)
    return predictions


def _disturbed(predictor: Predictor) -> Predictor:
    """Return the same model, whose photos are a little off, by as much as resizing may be."""
    noise = np.random.default_rng(0)

    def run(photos: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        return predictor.run(photos + noise.uniform(-RESIZING, RESIZING, photos.shape).astype(np.float32))

    return Predictor(predictor.name, predictor.card, run)


def _metrics(
    predictor: Predictor, predictions: list[ImagePrediction], photos: ProofPhotos, area: NDArray[np.bool_] | None
) -> dict[str, float | None]:
    masks = photos.masks or []
    types = [GOOD if mask is None else path.parent.name for path, mask in zip(photos.paths, masks, strict=True)]
    size = predictions[0].anomaly_map.shape
    metrics = evaluate(
        Predictions(
            image_paths=[str(path) for path in photos.paths],
            defect_types=types,
            labels=np.array([name != GOOD for name in types]),
            scores=np.array([prediction.score for prediction in predictions]),
            anomaly_maps=np.stack([prediction.anomaly_map for prediction in predictions]),
            masks=np.stack([_mask(mask, size) for mask in masks]),
            area=area,
        ),
        # Scores are raw here, maps normalised: that changes no metric, because normalising keeps the order.
        Thresholds(predictor.card["thresholds"]["image"], 0.5, predictor.card["thresholds"]["source"]),
    )
    return {name: metrics[name] for name in COMPARED}


def _mask(path: Path | None, size: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return a ground-truth mask at the model's resolution, resized as the data module does."""
    if path is None:
        return np.zeros(size, dtype=bool)
    mask = Mask(torch.from_numpy(read_mask(path)))
    return transform_together(Resize(list(size)), Image(mask[None]), mask)[1].numpy() > 0


def print_report(report: dict[str, Any], path: Path) -> None:
    """Print a report's differences and metrics as tables, and where it lies."""
    console = Console(width=max(116, Console().width))
    found, metrics = report["differences"], report["metrics"]
    forms: dict[str, tuple[str, Callable[[Any], str]]] = {
        "bytes": ("size, MB", lambda value: f"{value / 1e6:.1f}"),
        "verdicts": ("verdicts that differ", str),
        "normalised_score": ("normalised score (0 to 1)", "{:.1e}".format),
        "score": ("score", "{:.1e}".format),
        "p_value": ("p-value", "{:.1e}".format),
        "anomaly_map": ("normalised map", "{:.1e}".format),
        "mask_pixels": ("mask pixels that differ", str),
        "metrics": ("metrics", "{:.1e}".format),
    }
    rows = [
        Row([label, *(figure(row.get(key), form) for row in found.values())]) for key, (label, form) in forms.items()
    ]
    title = f"Largest differences from the checkpoint, {report['photos']} photos"
    console.print(Table(["", *found], rows, title=title).screen())
    if metrics:
        rows = [Row([name, *(figure(row[name], "{:.5f}".format) for row in metrics.values())]) for name in COMPARED]
        console.print(Table(["", *metrics], rows, title="Metrics").screen())
    failed = [name for name, row in found.items() if not row["proven"]]
    if report["precision"] == "float32":
        good, bad = "Proven: the exported models judge alike.", "NOT the same model"
        if (rounding := report["tolerance"]["normalised_score"]) > SCORE_TOLERANCE:
            good += (
                f" Normalised scores of the checkpoint itself move by {rounding:.1e} where pixels move by {RESIZING}."
            )
    else:
        losses = " and ".join(f"{loss:g} of {name}" for name, loss in LOSSES.items())
        good, bad = f"Proven: it loses no more than {losses}.", f"It loses more than {losses}, or verdicts differ"
    console.print(f"{bad}: {', '.join(failed)}." if failed else good, markup=False)
    console.print(f"  {path}", highlight=False, markup=False)
