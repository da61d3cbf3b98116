"""Write a fitted model in formats that other runtimes read. Heavy imports are inside functions.

ONNX and OpenVINO go through anomalib's exporter. Its torch export does not: that is a pickle of the whole Python
object, which only loads with TRUST_REMOTE_CODE=1 and can run anything. Here "torch" means tensors in safetensors and
the settings in the card.
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

# To make a format and to prove it.
PACKAGES = {
    "torch": (),
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
        formats: of ``torch``, ``onnx``, ``openvino``.
        output: folder of the folders.

    Returns:
        The folder of each format.

    Raises:
        UserError: the checkpoint cannot be loaded, a package is missing, or nothing can be written.
    """
    from padim_bottle.deploy.checkpoint import SETTINGS, build_padim, read_checkpoint
    from padim_bottle.deploy.predictor import read_metrics

    checkpoint = read_checkpoint(checkpoint_path)
    card = describe_padim(build_padim(checkpoint, checkpoint_path), read_metrics(checkpoint_path.parent))
    settings = {name: checkpoint[name] for name in SETTINGS if name in checkpoint}

    def torch_files(folder: Path) -> dict[str, Any]:
        from safetensors.torch import save

        tensors = {name: tensor.contiguous() for name, tensor in checkpoint["state_dict"].items()}
        (folder / MODEL_FILES["torch"]).write_bytes(save(tensors))
        return {"checkpoint": settings}

    def traced_files(folder: Path, model_format: str) -> dict[str, Any]:
        padim = build_padim(checkpoint, checkpoint_path)
        _through_anomalib(padim, model_format, folder)
        return {}

    folders = {}
    for model_format in formats:
        folders[model_format] = folder = output / model_format
        partial = output / f".{model_format}.partial-{os.getpid()}"
        try:
            partial.mkdir(parents=True)
            extra = torch_files(partial) if model_format == "torch" else traced_files(partial, model_format)
            write_card(partial, model_format, {**card, **extra})
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
