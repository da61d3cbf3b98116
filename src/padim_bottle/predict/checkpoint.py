"""Fitted models from files that may come from anywhere: tensors and plain data are read, code never is.

A run's ``model.ckpt`` is a pickle, so it goes through PyTorch's restricted unpickler (``weights_only``) with anomalib's
own list of harmless types.
"""

import inspect
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import timm
import torch
from anomalib.utils.serialization import anomalib_safe_globals

from padim_bottle.errors import UserError, in_a_line
from padim_bottle.model.backbone import LOCAL_PREFIX, Weights
from padim_bottle.model.padim import Padim


def load_padim(path: Path) -> Padim:
    """Load a checkpoint of this package or of anomalib's ``Padim``; neither ImageNet weights nor a network are needed.

    Args:
        path: a ``.ckpt`` file.

    Raises:
        UserError: the file cannot be read, holds anything but tensors and plain data, or is no fitted PaDiM.
    """
    return build_padim(read_checkpoint(path), path)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint's tensors and plain data, and nothing else.

    Raises:
        UserError: as ``load_padim``.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                # PyTorch does not compare the checksums of tensors.
                if archive.testzip() is not None:
                    raise ValueError("a checksum is wrong")
        with anomalib_safe_globals(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickles that it refuses in the next line
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"Cannot read the model {path}: {error.strerror or error}.") from error
    except Exception as error:
        # What a damaged or hostile file raises depends on where the reader stumbles over it.
        foreign = re.search(r"GLOBAL ([\w.]+)", str(error))
        problem = (
            f"it is refused unread, because it holds more than tensors and plain data ({foreign[1]})"
            if foreign
            else "the file is truncated, damaged or no checkpoint"
        )
        raise UserError(f"Cannot load the model {path}: {problem}.") from error
    if not isinstance(checkpoint, dict) or not all(
        isinstance(checkpoint.get(key), dict) for key in ("state_dict", "hyper_parameters")
    ):
        raise UserError(f"{path} is no checkpoint of PaDiM: scripts/train.py and anomalib's Padim write those.")
    return checkpoint


def build_padim(checkpoint: dict[str, Any], source: Path) -> Padim:
    """Build the model that a checkpoint describes, in eval mode.

    Lightning's own loader is not used: it imports any class that the file's hyper-parameters name.

    Args:
        checkpoint: what ``read_checkpoint`` returned.
        source: named in errors.

    Raises:
        UserError: it does not describe a fitted PaDiM.
    """
    # In anomalib's own checkpoints there is one grid, without a number.
    if not checkpoint["state_dict"].keys() & {"model.gaussian.mean", "model.grids.0.gaussian.mean"}:
        raise UserError(f"{source} holds no fitted PaDiM: its Gaussians are missing.")
    components = {"pre_processor", "post_processor", "evaluator", "visualizer"}
    known = inspect.signature(Padim).parameters.keys() - components
    settings = {name: value for name, value in checkpoint["hyper_parameters"].items() if name in known}
    settings |= {"pre_trained": False, "evaluator": False, "visualizer": False}
    try:
        settings["backbone"] = _architecture(settings.get("backbone", "resnet18"))
        padim = Padim(**settings)
        padim.on_load_checkpoint(checkpoint)
        padim.load_state_dict(checkpoint["state_dict"])
        _check_shapes(padim)
        _correct_record(padim, checkpoint)
    except UserError as error:
        raise UserError(f"Cannot load the model {source}: {error}") from error
    except (RuntimeError, TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise UserError(
            f"Cannot load the model {source}: its content does not fit together ({in_a_line(error)})."
        ) from error
    return padim.eval()


def _check_shapes(padim: Padim) -> None:
    """Compare settings and tensors: loading takes tensors of any size, because the fit decides their sizes."""
    model = padim.model
    for grid in model.grids:
        features, found = grid.embedding.n_features, grid.gaussian.mean.shape[-1]
        if not features == found == len(grid.embedding.idx):
            raise ValueError(f"n_features is {features}, its Gaussians have {found} features")
    if model.scores_map and model.scored_mean.numel() and padim.input_size not in (None, model.scored_mean.shape):
        pixels = tuple(model.scored_mean.shape)
        raise ValueError(f"image_size is {tuple(padim.input_size)}, its maps have {pixels} pixels")


def _correct_record(padim: Padim, checkpoint: dict[str, Any]) -> None:
    """Let the model's arguments be those that it was trained with, not those that it was built with here."""
    told = checkpoint["hyper_parameters"]
    padim.hparams["pre_trained"] = pre_trained = told.get("pre_trained", True)
    if "padim_bottle_weights" not in checkpoint:  # anomalib's Padim: it knows neither our defaults nor our record
        for name in padim.hparams.keys() - told.keys():
            del padim.hparams[name]
        padim.hparams["image_size"] = list(padim.input_size or ())
        padim.weights = Weights(padim.weights.name, "timm" if pre_trained else "random", None)


def _architecture(backbone: str) -> str:
    """Return what timm can build the network from where a folder of weights is not on this machine."""
    if backbone.startswith(LOCAL_PREFIX):
        folder = Path(backbone.removeprefix(LOCAL_PREFIX))
        if not folder.is_dir() and timm.is_model(folder.name.split(".")[0]):
            return folder.name
    return backbone
