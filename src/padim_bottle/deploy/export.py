"""Write a fitted model in formats that other runtimes read. Heavy imports are inside functions.

They go through anomalib's exporter. There is no export for torch: anomalib's is a pickle of the whole Python object,
which can run anything, and ``model.ckpt`` is read as tensors and plain data already.
"""

from __future__ import annotations

import logging
import os
import shutil
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from padim_bottle.deploy.card import MODEL_FILES, describe_padim, write_card
from padim_bottle.errors import UserError

OPSET = 18

# Else a processor that can computes in bfloat16: scores of good photos then move by a tenth, and verdicts with them.
OPENVINO_SETTINGS = {"INFERENCE_PRECISION_HINT": "f32"}

# To make a format and to prove it.
PACKAGES = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "openvino"),
}

# Constants with fewer numbers are not worth shrinking.
LARGE = 100_000


def check_packages(formats: Sequence[str]) -> None:
    """Raise a UserError that names the packages which some formats need and which are not installed."""
    needed = dict.fromkeys(package for name in formats for package in PACKAGES[name])
    missing = [package for package in needed if find_spec(package) is None]
    if missing:
        raise UserError(f'Export needs {", ".join(missing)}: pip install -e ".[export]".')


def find_checkpoint(path: Path) -> Path:
    """Return the checkpoint that a run's folder holds, or that a path is.

    Raises:
        UserError: there is none.
    """
    checkpoint = path / "model.ckpt" if path.is_dir() else path
    if not checkpoint.is_file():
        raise UserError(f"There is no checkpoint {checkpoint}: give the folder of a run, or its model.ckpt.")
    return checkpoint


def export(checkpoint_path: Path, formats: Sequence[str], output: Path) -> dict[str, Path]:
    """Write a model in some formats, each into a folder of its own that appears whole or not at all.

    Args:
        checkpoint_path: checkpoint of this package or of anomalib's ``Padim``.
        formats: of ``onnx``, ``openvino``.
        output: folder of the folders.

    Returns:
        The folder of each format.

    Raises:
        UserError: the checkpoint cannot be loaded, a package is missing, or nothing can be written.
    """
    from padim_bottle.deploy.checkpoint import load_padim
    from padim_bottle.deploy.predictor import read_metrics

    folders = {}
    for model_format in formats:
        padim = load_padim(checkpoint_path)  # anew, for tracing changes it
        card = describe_padim(padim, read_metrics(checkpoint_path.parent))
        folders[model_format] = folder = output / model_format
        partial = output / f".{model_format}.partial-{os.getpid()}"
        try:
            partial.mkdir(parents=True)
            _through_anomalib(padim, model_format, partial)
            write_card(partial, model_format, {**card, "openvino_settings": OPENVINO_SETTINGS})
            _put_in_place(partial, folder)
        except OSError as error:
            raise UserError(f"Cannot write the exported model to {folder}: {error}.") from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        print(f"{folder}: {sum(file.stat().st_size for file in folder.iterdir()) / 1e6:.1f} MB", flush=True)
    return folders


def _through_anomalib(padim: Any, model_format: str, folder: Path) -> None:
    from padim_bottle.deploy.network import EndToEndPadim

    network = EndToEndPadim(padim, exporting=True)
    # One file: the weights stay inside.
    settings = {"opset_version": OPSET, "external_data": False, "verbose": False}
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if model_format == "onnx":
            written = network.to_onnx(folder, **settings)
        else:
            written = network.to_openvino(folder, onnx_kwargs=settings)
    # anomalib writes to weights/<format>/.
    (_tidy_onnx if model_format == "onnx" else _tidy_openvino)(written, folder / MODEL_FILES[model_format])
    shutil.rmtree(folder / "weights")


def _tidy_onnx(source: Path, target: Path) -> None:
    """Drop what tracing left about the code it traced: line numbers, and paths of this machine."""
    import onnx

    model = onnx.load(source)
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]
    onnx.save(model, target)


def _tidy_openvino(source: Path, target: Path) -> None:
    """Store large constants that half precision holds exactly in half precision, as the ONNX model had them.

    OpenVINO's converter unfolds them. Its own compression would round everything else too: network, means, thresholds.
    """
    import numpy as np
    import openvino as ov
    from openvino import opset13

    model = ov.Core().read_model(source)
    for operation in model.get_ops():
        if operation.get_type_name() != "Constant" or operation.get_element_type() != ov.Type.f32:
            continue
        values = operation.data
        half = values.astype(np.float16)
        if values.size >= LARGE and np.array_equal(half.astype(np.float32), values):
            restored = opset13.convert(opset13.constant(half), "f32")
            operation.output(0).replace(restored.output(0))

    ov.save_model(model, target, compress_to_fp16=False)


def _put_in_place(partial: Path, folder: Path) -> None:
    old = folder.with_name(f".{folder.name}.replaced-{os.getpid()}")
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
