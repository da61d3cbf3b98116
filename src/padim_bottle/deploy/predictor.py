"""Fitted models ready to predict, from whatever lies on disk: a checkpoint, or a torch, ONNX or OpenVINO export."""

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from padim_bottle.deploy.card import CARD, FORMATS, MODEL_FILES, describe_padim, read_card
from padim_bottle.errors import UserError

# From photos (B, H, W, 3), RGB uint8, to the outputs of ``end_to_end.PadimOutput`` by name.
Run = Callable[[NDArray[np.uint8]], dict[str, NDArray]]


@dataclass(frozen=True, eq=False)
class ImagePrediction:
    """What a model says about one photo.

    Attributes:
        score: as in ``predictions.csv``; higher is more anomalous.
        normalised_score: 0 to 1, threshold 0.5.
        p_value: how often a good image scores at least this high; None for a model that was not calibrated.
        anomalous: the verdict.
        anomaly_map: (H, W) normalised pixel scores at the model's resolution, threshold 0.5.
        mask: (H, W) bool, True on pixels called anomalous.
    """

    score: float
    normalised_score: float
    p_value: float | None
    anomalous: bool
    anomaly_map: NDArray[np.float32]
    mask: NDArray[np.bool_]


class Predictor:
    """A loaded model.

    Attributes:
        name: ``torch``, ``onnx`` or ``openvino``.
        card: what is known about the model, see ``model_card``.
    """

    def __init__(self, name: str, card: dict[str, Any], run: Run) -> None:
        self.name = name
        self.card = card
        self.run = run

    def predict(self, images: Sequence[NDArray[np.uint8]]) -> list[ImagePrediction]:
        """Predict photos (h, w, 3), RGB uint8, of any sizes; those of one size go through the model together."""
        by_size: dict[tuple[int, ...], list[int]] = {}
        for i, image in enumerate(images):
            by_size.setdefault(image.shape, []).append(i)
        predictions: dict[int, ImagePrediction] = {}
        for places in by_size.values():
            outputs = self.run(np.stack([images[i] for i in places]))
            for row, i in enumerate(places):
                predictions[i] = _prediction({name: values[row] for name, values in outputs.items()})
        return [predictions[i] for i in range(len(images))]


def _prediction(outputs: dict[str, NDArray]) -> ImagePrediction:
    return ImagePrediction(
        score=outputs["raw_score"].item(),
        normalised_score=outputs["pred_score"].item(),
        p_value=outputs["p_value"].item() if "p_value" in outputs else None,
        anomalous=bool(outputs["pred_label"].item()),
        anomaly_map=outputs["anomaly_map"][0],
        mask=outputs["pred_mask"][0].astype(bool),
    )


def load_predictor(path: Path, *, device: str = "auto", threads: int | None = None) -> Predictor:
    """Load whatever model lies at a path. Nothing in the files is run as code.

    Args:
        path: a run's folder, a ``.ckpt`` file, or the folder of an exported model (or its main file).
        device: ``auto``, ``cpu`` or ``cuda``; ONNX and OpenVINO models run on the CPU.
        threads: of the CPU; all cores if not given.

    Raises:
        UserError: there is no model, it is damaged or foreign, or its runtime is not installed.
    """
    if path.is_file() and path.name in (CARD, *MODEL_FILES.values()) and (path.parent / CARD).is_file():
        path = path.parent
    if path.is_file():
        return _load_checkpoint(path, device, threads)
    if (path / CARD).is_file():
        return _load_exported(path, device, threads)
    if (path / "model.ckpt").is_file():
        return _load_checkpoint(path / "model.ckpt", device, threads)
    exported = [path / name for name in FORMATS if (path / name / CARD).is_file()]
    if exported:
        raise UserError(f"{path} holds several exported models, name one: {', '.join(map(str, exported))}.")
    if not path.exists():
        raise UserError(f"There is no model {path}: give a run's folder, its model.ckpt or an exported model's folder.")
    raise UserError(f"There is no model in {path}: it has neither model.ckpt nor {CARD}.")


def _load_checkpoint(path: Path, device: str, threads: int | None) -> Predictor:
    from padim_bottle.deploy.checkpoint import load_padim

    padim = load_padim(path)
    card = describe_padim(padim, read_metrics(path.parent))
    return Predictor("torch", card, _torch_run(padim, device, threads))


def read_metrics(run: Path) -> dict[str, Any] | None:
    """Return a run's ``metrics.json``, or None where there is none."""
    try:
        metrics = json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return metrics if isinstance(metrics, dict) else None


def _load_exported(folder: Path, device: str, threads: int | None) -> Predictor:
    card = read_card(folder)
    load = {"torch": _load_safetensors, "onnx": _load_onnx, "openvino": _load_openvino}[card["format"]]
    return Predictor(card["format"], card, load(folder, card, device, threads))


def _load_safetensors(folder: Path, card: dict[str, Any], device: str, threads: int | None) -> Run:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from padim_bottle.deploy.checkpoint import build_padim

    file = folder / MODEL_FILES["torch"]
    try:
        settings = card["checkpoint"]
        checkpoint = {**settings, "hyper_parameters": settings["hyper_parameters"], "state_dict": load_file(file)}
    except (SafetensorError, KeyError, TypeError) as error:
        raise UserError(f"Cannot load the model {file}: {error}.") from error
    return _torch_run(build_padim(checkpoint, file), device, threads)


def _torch_run(padim: Any, device: str, threads: int | None) -> Run:
    import torch

    from padim_bottle.deploy.network import EndToEndPadim

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    elif device == "cuda" and not torch.cuda.is_available():
        raise UserError("There is no CUDA device here: leave --device out.")
    if threads:
        torch.set_num_threads(threads)
    network = EndToEndPadim(padim).to(device)

    def run(images: NDArray[np.uint8]) -> dict[str, NDArray]:
        with torch.inference_mode():
            # The view keeps colours innermost in memory, as the training's does.
            pixels = torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float().div_(255)
            outputs = network(pixels)._asdict()
            return {name: value.cpu().numpy() for name, value in outputs.items() if value is not None}

    return run


def _load_onnx(folder: Path, card: dict[str, Any], device: str, threads: int | None) -> Run:
    ort = _require("onnxruntime", "ONNX")
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or _cores()
    options.log_severity_level = 3
    file = folder / MODEL_FILES["onnx"]
    try:
        session = ort.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise UserError(f"ONNX Runtime cannot load {file}: {_first_line(error)}.") from error
    names = [output.name for output in session.get_outputs()]

    def run(images: NDArray[np.uint8]) -> dict[str, NDArray]:
        return dict(zip(names, session.run(names, {card["input"]["name"]: _to_floats(images)}), strict=True))

    return run


def _load_openvino(folder: Path, card: dict[str, Any], device: str, threads: int | None) -> Run:
    ov = _require("openvino", "OpenVINO")
    file = folder / MODEL_FILES["openvino"]
    try:
        compiled = ov.Core().compile_model(
            file,
            "CPU",
            {
                "PERFORMANCE_HINT": "LATENCY",
                # Else it computes in bfloat16 where the processor can, and scores move in the third digit.
                "INFERENCE_PRECISION_HINT": "f32",
                "INFERENCE_NUM_THREADS": threads or _cores(),
            },
        )
    except Exception as error:
        raise UserError(f"OpenVINO cannot load {file}: {_first_line(error)}.") from error
    names = [output.any_name for output in compiled.outputs]

    def run(images: NDArray[np.uint8]) -> dict[str, NDArray]:
        outputs = compiled(_to_floats(images))
        # Copies: the next inference writes into the same memory.
        return {name: np.array(outputs[i]) for i, name in enumerate(names)}

    return run


def _to_floats(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return photos (B, H, W, 3) as exported models take them: (B, 3, H, W), 0 to 1."""
    import cv2

    # Faster than NumPy, and than letting OpenVINO do it in the graph.
    return cv2.dnn.blobFromImages(images, 1 / 255)


def _require(package: str, name: str) -> Any:
    from importlib import import_module

    try:
        return import_module(package)
    except ImportError as error:
        raise UserError(f'{name} models need {package}: pip install -e ".[export]" ({error}).') from error


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else type(error).__name__
