"""Write a fitted model in formats that other runtimes read. Heavy imports are inside functions.

They go through anomalib's exporter. There is no export for torch: anomalib's is a pickle of the whole Python object,
which can run anything, and ``model.ckpt`` is read as tensors and plain data already.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from padim_bottle.errors import UserError
from padim_bottle.files import whole_folder
from padim_bottle.predict.card import MODEL_FILES, describe_padim, write_card

OPSET = 18

# To make a format and to prove it.
PACKAGES = {
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "openvino"),
}


def check_packages(formats: Sequence[str], precision: str = "float32") -> None:
    """Raise a UserError that names the packages which some formats need and which are not installed."""
    needed = dict.fromkeys(package for name in formats for package in PACKAGES[name])
    missing = [package for package in needed if find_spec(package) is None]
    if missing:
        raise UserError(f'Export needs {", ".join(missing)}: pip install -e ".[export]".')
    if precision == "int8" and find_spec("nncf") is None:
        raise UserError('Precision int8 needs nncf: pip install -e ".[int8]".')


def find_checkpoint(path: Path) -> Path:
    """Return the checkpoint that a run's folder holds, or that a path is.

    Raises:
        UserError: there is none.
    """
    checkpoint = path / "model.ckpt" if path.is_dir() else path
    if not checkpoint.is_file():
        raise UserError(f"There is no checkpoint {checkpoint}: give the folder of a run, or its model.ckpt.")
    return checkpoint


def export(
    checkpoint_path: Path,
    formats: Sequence[str],
    output: Path,
    precision: str = "float32",
    photos: Sequence[Path] = (),
) -> dict[str, Path]:
    """Write a model in some formats, each into a folder of its own that appears whole or not at all.

    Args:
        checkpoint_path: checkpoint of this package or of anomalib's ``Padim``.
        formats: of ``onnx``, ``openvino``.
        output: folder of the folders.
        precision: of the backbone, see ``precision``.
        photos: of the training, where the precision is not that of the checkpoint.

    Returns:
        The folder of each format, by its name there: ``openvino``, ``openvino_int8``.

    Raises:
        UserError: the checkpoint cannot be loaded, a package is missing, or nothing can be written.
    """
    from padim_bottle.export.precision import settings_for
    from padim_bottle.predict.checkpoint import load_padim
    from padim_bottle.predict.predictor import read_metrics

    folders = {}
    folder = output
    try:
        with tempfile.TemporaryDirectory(prefix="padim-") as temporary:
            padim = load_padim(checkpoint_path)
            if precision != "float32":
                _refit_to_export(padim, checkpoint_path, precision, photos, Path(temporary, "before"))
            settings = {"precision": precision, "openvino_settings": settings_for(precision)}
            card = {**describe_padim(padim, read_metrics(checkpoint_path.parent)), **settings}
            traced = trace(padim, Path(temporary))
            for model_format in formats:
                name = model_format if precision == "float32" else f"{model_format}_{precision}"
                folders[name] = folder = output / name
                with whole_folder(folder) as partial:
                    if model_format == "onnx":
                        _tidy_onnx(traced, partial / MODEL_FILES["onnx"])
                    else:
                        _write_openvino(traced, precision, photos, partial / MODEL_FILES["openvino"])
                    write_card(partial, model_format, card)
                print(f"{folder}: {sum(file.stat().st_size for file in folder.iterdir()) / 1e6:.1f} MB", flush=True)
    except OSError as error:
        raise UserError(f"Cannot write the exported model to {folder}: {error}.") from error
    return folders


def trace(padim: Any, folder: Path) -> Path:
    """Write a model as ONNX, through anomalib's exporter, and return the file; the model is changed."""
    from padim_bottle.predict.end_to_end import EndToEndPadim

    network = EndToEndPadim(padim, exporting=True)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # One file: the weights stay inside.
        return network.to_onnx(folder, opset_version=OPSET, external_data=False, verbose=False)


def _write_openvino(traced: Path, precision: str, photos: Sequence[Path], target: Path) -> None:
    import openvino as ov

    from padim_bottle.export.openvino_model import read_onnx, shrink_constants
    from padim_bottle.export.precision import lower

    model, backbone = read_onnx(traced)
    model = lower(model, backbone, precision, photos)
    shrink_constants(model)
    ov.save_model(model, target, compress_to_fp16=False)


def _refit_to_export(padim: Any, checkpoint_path: Path, precision: str, photos: Sequence[Path], folder: Path) -> None:
    """Fit a model anew to the features of the backbone that will be exported."""
    from padim_bottle.export.openvino_model import read_onnx
    from padim_bottle.export.precision import lower, refit
    from padim_bottle.predict.checkpoint import load_padim

    # Tracing changes a model: another copy is traced.
    model, backbone = read_onnx(trace(load_padim(checkpoint_path), folder))
    refit(padim, lower(model, backbone, precision, photos), backbone, precision, photos)


def _tidy_onnx(source: Path, target: Path) -> None:
    """Drop what tracing left about the code it traced: line numbers, and paths of this machine."""
    import onnx

    model = onnx.load(source)
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]
    onnx.save(model, target)
