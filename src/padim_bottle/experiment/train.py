"""One experiment, from YAML to results: config, seed, data, model, callbacks, engine, train, test."""

import contextlib
import gc
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anomalib.data
import timm
import torch
from anomalib.data import AnomalibDataModule
from anomalib.engine import Engine
from anomalib.models import AnomalibModule
from jsonargparse import Namespace
from lightning import seed_everything
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import SaveConfigCallback
from torch import nn

from padim_bottle.data.mvtec import MVTecAD
from padim_bottle.data.samples import prepare
from padim_bottle.errors import UserError, in_a_line
from padim_bottle.experiment.config import ExperimentConfig, in_one_line
from padim_bottle.model.backbone import LOCAL_PREFIX, Weights, locate_weights
from padim_bottle.model.padim import Padim
from padim_bottle.runs.writer import ResultsWriter

_ATTEMPTS = 50


@dataclass(frozen=True)
class Experiment:
    """What a config describes, built.

    Attributes:
        settings: the config as resolved.
        results_writer: the callback that writes the results, if the config names it.
    """

    settings: Namespace
    model: AnomalibModule
    datamodule: AnomalibDataModule
    engine: Engine
    results_writer: ResultsWriter | None


def train(
    config: Path,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    experiment: str | None = None,
    results: Path | None = None,
    previous: Path | None = None,
) -> Experiment:
    """Train and test what a config describes, through anomalib's Engine.

    Args:
        config: YAML file, in the stock CLI's layout.
        overrides: in the stock CLI's spelling, for example ``["--data.init_args.category", "cable"]``.
        seed: overrides the config's.
        experiment: overrides the name of the results folder.
        results: overrides the folder of all results.
        previous: folder of the run to compare with, as in ``ResultsWriter``.

    Raises:
        UserError: a mistake that the user can mend.
    """
    built = build(ExperimentConfig(config, overrides).choose(seed, experiment, results))
    if built.results_writer is not None:
        built.results_writer.previous = previous
    run(built)
    return built


def build(parsed: ExperimentConfig, *, quiet: bool = False, workplace: Path | None = None) -> Experiment:
    """Apply a config's seed, and build data, model, callbacks and engine.

    Args:
        parsed: the config.
        quiet: print neither progress bars nor a summary.
        workplace: Lightning's working folder instead of the config's, which is recorded all the same.

    Raises:
        UserError: a mistake that the user can mend.
    """
    if not gc.get_freeze_count():
        # What was loaded stays: the garbage collector then skips those million objects.
        gc.freeze()
    apply_seed(parsed.seed, optional="seed" not in parsed.settings.model.init_args)
    chosen = parsed.settings.model
    if chosen.class_path.startswith("padim_bottle.") and chosen.init_args.pre_trained:
        # Here and not only where the model is built: jsonargparse would turn the error into one of its own.
        locate_weights(chosen.init_args.backbone)
    with in_one_line(parsed.path), weights_for_timm() as found:
        built = parsed.parser.instantiate_classes(parsed.settings)
    if found:
        built.model.weights = found[0]
    _use_our_copy(built.data)

    trainer = dict(built.trainer)
    if trainer["accelerator"] == "auto" and not torch.cuda.is_available() and isinstance(built.model, Padim):
        trainer["accelerator"] = "cpu"  # MPS has no double precision
    callbacks = [*(trainer["callbacks"] or [])]
    writer = next((callback for callback in callbacks if isinstance(callback, ResultsWriter)), None)
    if not trainer["fast_dev_run"]:
        callbacks.append(SaveConfigCallback(parsed.parser, parsed.settings, overwrite=True))
    trainer["callbacks"] = callbacks
    if quiet:
        trainer["enable_progress_bar"] = False
        if writer is not None:
            writer.quiet = True
    if workplace is not None:
        trainer["default_root_dir"] = workplace
    return Experiment(parsed.settings, built.model, built.data, Engine(**trainer), writer)


def run(experiment: Experiment) -> None:
    """Train and test what was built; the callback ``ResultsWriter`` writes the results.

    Raises:
        UserError: among others, what Lightning's Trainer does not accept.
    """
    # Before training starts, and not in the middle of Lightning's preparations.
    prepare(experiment.datamodule)
    engine = experiment.engine
    for attempt in range(_ATTEMPTS):
        try:
            engine.train(model=experiment.model, datamodule=experiment.datamodule)
            return
        except (FileExistsError, FileNotFoundError):  # noqa: PERF203
            # Runs that begin or end together meet in anomalib's numbered working folder: take the next number.
            if engine._trainer is not None or attempt == _ATTEMPTS - 1:
                raise
            time.sleep(0.02)
        except (ValueError, MisconfigurationException) as error:
            if engine._trainer is not None:
                raise
            raise UserError(f"trainer: {in_a_line(error)}.") from error


def apply_seed(seed: int | bool | None, *, optional: bool) -> None:
    """Seed all generators.

    Args:
        seed: from 0 to 2**32 - 1.
        optional: ``None`` and ``true``, anomalib's default, leave the run unseeded.

    Raises:
        UserError: it is none.
    """
    if optional and (seed is None or isinstance(seed, bool)):
        os.environ.pop("PL_GLOBAL_SEED", None)  # of an earlier run in this process
        return
    if seed is None or seed >= 2**32:
        raise UserError(f"seed: {seed} is not a whole number from 0 to {2**32 - 1}.")
    if seed < 0:
        raise UserError(f"seed: {seed} is negative, choose 0 or more.")
    seed_everything(seed, verbose=False)


@contextlib.contextmanager
def weights_for_timm() -> Iterator[list[Weights]]:
    """Let ``timm.create_model`` find pretrained weights where ``locate_weights`` looks, and say what it found.

    anomalib's models name a backbone and leave the rest to timm, which looks on the Hugging Face hub alone.
    """
    create_model: Any = timm.create_model
    found: list[Weights] = []

    def create(name: str, pretrained: bool = False, **arguments: Any) -> nn.Module:
        if pretrained and not name.startswith(LOCAL_PREFIX):
            name, weights = locate_weights(name)
            found.append(weights)
        return create_model(name, pretrained=pretrained, **arguments)

    timm.create_model = create  # type: ignore[assignment]
    try:
        yield found
    finally:
        timm.create_model = create_model


def _use_our_copy(data: AnomalibDataModule) -> None:
    """Let anomalib's own MVTec AD read the copy that ours finds, fetches and verifies."""
    if type(data) is anomalib.data.MVTecAD:
        named_elsewhere = os.environ.get("MVTEC_AD_ROOT") or not Path(data.root).is_dir()
        ours = MVTecAD(None if named_elsewhere else data.root, data.category)
        ours.prepare_data()
        data.root = ours.root
