"""Fitted models ready to predict, loaded from a checkpoint or from an ONNX or OpenVINO export."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from padim_bottle.data.images import read_image
from padim_bottle.errors import UserError, in_a_line
from padim_bottle.evaluation.regions import Region, called_pixels, find_regions
from padim_bottle.files import sha256
from padim_bottle.model.rule import Rule, raw_scores
from padim_bottle.predict.card import CARD, MODEL_FILES, describe_padim, read_card
from padim_bottle.predict.photo_resize import resize_photo
from padim_bottle.runs import folder
from padim_bottle.stages import cores

# From photos (B, 3, H, W), RGB float32 in [0, 1], to anomalib's outputs by name, and to raw_score where it is at hand.
Inference = Callable[[NDArray[np.float32]], dict[str, NDArray[Any]]]


@dataclass(frozen=True, eq=False)
class ImagePrediction:
    """What a model says about one photo.

    Attributes:
        score: as in ``predictions.csv``; higher is more anomalous.
        normalised_score: 0 to 1, threshold 0.5.
        p_value: how often a good image scores at least this high; None for a model that was not calibrated.
        anomalous: the verdict.
        anomaly_map: (H, W) normalised pixel scores at the model's resolution, threshold 0.5.
        map_mean: mean of the raw anomaly map, which tells drift; None for a model that has nothing to compare it with.
        size: height and width of the photo; None where only the map's are known.
        pixel_threshold: of the map; None for a model without one.
    """

    score: float
    normalised_score: float
    p_value: float | None
    anomalous: bool
    anomaly_map: NDArray[np.float32]
    map_mean: float | None = None
    size: tuple[int, int] | None = None
    pixel_threshold: float | None = 0.5

    @cached_property
    def mask(self) -> NDArray[np.bool_]:
        """(H, W), True on pixels called anomalous: on none of a photo that passes, on some of every alarm."""
        return called_pixels(self.anomaly_map, self.anomalous, self.pixel_threshold)

    @cached_property
    def regions(self) -> list[Region]:
        """The regions of the mask in pixels of the photo, by falling largest value."""
        return find_regions(self.anomaly_map, self.mask, self.size)


class PreparedPhoto(NamedTuple):
    """A photo as a model takes it: pixels (3, H, W) in [0, 1], and height and width that it had."""

    pixels: NDArray[np.float32]
    size: tuple[int, int]


class Predictor:
    """A loaded model.

    Args:
        name: ``torch``, ``onnx`` or ``openvino``.
        card: what is known about the model, see ``card``.
        run: the model itself.
        alpha: judge images at this false-alarm rate instead of the one chosen in training.
        digest: of the model's file: tells it from others.
        confidence: keep that rate, or that of the training, with this confidence.

    Attributes:
        run: the model itself.
        rule: turns image scores into p-values and verdicts.
        size: height and width that ``prepare`` brings photos to; empty to leave that to the model.
    """

    def __init__(
        self,
        name: str,
        card: dict[str, Any],
        run: Inference,
        alpha: float | None = None,
        digest: str = "",
        confidence: float | None = None,
    ) -> None:
        self.name = name
        self.card = card
        self.digest = digest
        self.run = run
        self.size = card["input"]["model_size"]
        self._trained = Rule.of_card(card)
        # Of the maps that the model gives.
        thresholds = card["thresholds"]
        normalised = thresholds["pixel"] is not None and self._trained.scale is not None
        self._pixel_threshold = 0.5 if normalised else thresholds["pixel"]
        self.rule = self._trained
        if alpha is not None or confidence is not None:
            self.rule = self._trained.at(alpha or (card["calibration"] or {}).get("alpha", 0), confidence)

    def read(self, path: Path) -> NDArray[np.uint8]:
        """Read a photo (h, w, 3), RGB, as those of the training were read.

        Raises:
            UserError: it cannot be read.
        """
        return read_image(path, self.card["input"].get("photo_bits", 16))

    def prepare(self, photo: NDArray[np.uint8], size: tuple[int, int] | None = None) -> PreparedPhoto:
        """Return a photo (h, w, 3), RGB uint8, as the model takes it.

        It is resized to the model's size, with antialiasing as in training (to 1e-6), so that a large photo does not
        stay in memory. A model without such a resizing takes it as it is.

        Args:
            photo: as ``read`` returns it.
            size: height and width in the photo's file, where it was read smaller.
        """
        if self.size:
            pixels = resize_photo(photo, *self.size)
        else:
            pixels = photo.transpose(2, 0, 1).astype(np.float32, order="C") / np.float32(255)
        return PreparedPhoto(pixels, size or photo.shape[:2])

    def predict(self, photos: Sequence[NDArray[np.uint8]]) -> list[ImagePrediction]:
        """Predict photos (h, w, 3), RGB uint8, of any sizes."""
        return self.predict_prepared([self.prepare(photo) for photo in photos])

    def predict_prepared(self, photos: Sequence[PreparedPhoto]) -> list[ImagePrediction]:
        """Predict what ``prepare`` returned; photos of one size go through the model together."""
        if len({photo.pixels.shape for photo in photos}) > 1:
            return [prediction for photo in photos for prediction in self.predict_prepared([photo])]
        if not photos:
            return []
        outputs = self.run(np.stack([photo.pixels for photo in photos]))
        rows = [dict(zip(outputs, values, strict=True)) for values in zip(*outputs.values(), strict=True)]
        return [self._prediction(row, photo.size) for row, photo in zip(rows, photos, strict=True)]

    def _prediction(self, outputs: dict[str, NDArray[Any]], size: tuple[int, int]) -> ImagePrediction:
        normalised = outputs["pred_score"].item()
        score = outputs["raw_score"].item() if "raw_score" in outputs else self._trained.score(normalised)
        return ImagePrediction(
            score=score,
            normalised_score=normalised if self.rule is self._trained else self.rule.normalised(score),
            p_value=self.rule.p_value(score),
            anomalous=self.rule.anomalous(score),
            anomaly_map=outputs["anomaly_map"][0],
            map_mean=self._map_mean(outputs["anomaly_map"]),
            size=size,
            pixel_threshold=self._pixel_threshold,
        )

    def _map_mean(self, anomaly_map: NDArray[np.floating]) -> float | None:
        drift = self.card["drift"]
        if drift is None:
            return None
        if drift["pixel_scale"] is not None:
            anomaly_map = raw_scores(anomaly_map, self.card["thresholds"]["pixel"], drift["pixel_scale"])
        return float(anomaly_map.mean(dtype=np.float64))


def load_predictor(
    path: Path,
    *,
    device: str = "auto",
    threads: int | None = None,
    alpha: float | None = None,
    confidence: float | None = None,
) -> Predictor:
    """Load the model at a path, of any kind. Nothing in the files is run as code.

    Args:
        path: a run's folder, a ``.ckpt`` file, or the folder of an exported model (or its main file).
        device: ``auto``, ``cpu`` or ``cuda``; ONNX and OpenVINO models run on the CPU.
        threads: of the CPU; all cores if not given.
        alpha: false-alarm rate, instead of that of the training.
        confidence: with which that rate, or that of the training, is kept.

    Raises:
        UserError: there is no model, it is damaged or foreign, its runtime is not installed, or it has no such alpha.
    """
    if path.is_file() and path.name in (CARD, *MODEL_FILES.values()) and (path.parent / CARD).is_file():
        path = path.parent
    if (path / CARD).is_file():
        card = read_card(path)
        load = {"onnx": _load_onnx, "openvino": _load_openvino}[card["format"]]
        return Predictor(card["format"], card, load(path, card, threads), alpha, sha256(path / CARD), confidence)
    checkpoint = path if path.is_file() else path / "model.ckpt"
    if checkpoint.is_file():
        return _load_checkpoint(checkpoint, device, threads, alpha, confidence)
    exported = [path / name for name in MODEL_FILES if (path / name / CARD).is_file()]
    if exported:
        raise UserError(f"{path} holds several exported models, name one: {', '.join(map(str, exported))}.")
    if not path.exists():
        raise UserError(f"There is no model {path}: give a run's folder, its model.ckpt or an exported model's folder.")
    raise UserError(f"There is no model in {path}: it has neither model.ckpt nor {CARD}.")


def read_metrics(run: Path) -> dict[str, Any] | None:
    """Return a run's ``metrics.json``, or None where there is none."""
    try:
        return folder.read_metrics(run)
    except UserError:
        return None


def _load_checkpoint(
    path: Path, device: str, threads: int | None, alpha: float | None, confidence: float | None
) -> Predictor:
    import torch

    from padim_bottle.predict.checkpoint import load_padim
    from padim_bottle.predict.end_to_end import EndToEndPadim

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    elif device == "cuda" and not torch.cuda.is_available():
        raise UserError("There is no CUDA device here: leave --device out.")
    if threads:
        torch.set_num_threads(threads)
    padim = load_padim(path)
    card = describe_padim(padim, read_metrics(path.parent))
    network = EndToEndPadim(padim).to(device)

    def run(photos: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        with torch.inference_mode():
            raw = network.raw(torch.from_numpy(photos).to(device, memory_format=torch.channels_last))
            outputs = {"raw_score": raw.pred_score, **network.judge(raw)._asdict()}
            return {name: value.cpu().numpy() for name, value in outputs.items()}

    return Predictor("torch", card, run, alpha, sha256(path), confidence)


def _load_onnx(folder: Path, card: dict[str, Any], threads: int | None) -> Inference:
    ort = _require("onnxruntime", "ONNX")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or cores()
    options.log_severity_level = 3
    file = folder / MODEL_FILES["onnx"]
    try:
        session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise UserError(f"ONNX Runtime cannot load {file}: {in_a_line(error)}.") from error
    names = [output.name for output in session.get_outputs()]
    return lambda photos: dict(zip(names, session.run(names, {card["input"]["name"]: photos}), strict=True))


def _load_openvino(folder: Path, card: dict[str, Any], threads: int | None) -> Inference:
    ov = _require("openvino", "OpenVINO")
    file = folder / MODEL_FILES["openvino"]
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads or cores(),
        **card["openvino_settings"],
    }
    try:
        compiled = ov.Core().compile_model(file, "CPU", settings)
    except Exception as error:
        raise UserError(f"OpenVINO cannot load {file}: {in_a_line(error)}.") from error
    names = [output.any_name for output in compiled.outputs]

    def run(photos: NDArray[np.float32]) -> dict[str, NDArray[Any]]:
        outputs = compiled(photos)
        # Copies: the next inference writes into the same memory.
        return {name: np.array(outputs[i]) for i, name in enumerate(names)}

    return run


def _require(package: str, name: str) -> Any:
    try:
        return import_module(package)
    except ImportError as error:
        raise UserError(f'{name} models need {package}: pip install -e ".[export]" ({error}).') from error
