"""An experiment's YAML, parsed and built as ``anomalib train`` does it, with a seed that applies."""

import contextlib
import hashlib
import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import anomalib.data
import timm
from anomalib.cli import AnomalibCLI
from jsonargparse import ArgumentError, ArgumentParser, Namespace
from lightning import seed_everything
from lightning.pytorch.cli import instantiate_class
from torch import nn

from padim_bottle.data.mvtec import MVTecAD
from padim_bottle.data.samples import describe
from padim_bottle.errors import UserError
from padim_bottle.experiment.config_check import check_config
from padim_bottle.model.backbone import LOCAL_PREFIX, Weights, default_n_features, is_random, locate_weights
from padim_bottle.runs.writer import ResultsWriter, dump_config

logging.getLogger("anomalib.cli").setLevel(logging.ERROR)


class ExperimentCLI(AnomalibCLI):
    """A config, parsed and checked; ``apply_seed`` and then ``build`` make data, model, callbacks and engine of it.

    Args:
        config: YAML file in the stock CLI's layout.
        overrides: arguments in the stock CLI's spelling.

    Attributes:
        settings: the config as resolved; assign to it to change it before it is built.
        model, datamodule, engine, results_writer: what ``build`` made.

    Raises:
        UserError: a key, type or value that the config cannot have, in one line.
    """

    def __init__(self, config: Path, overrides: Sequence[str] = ()) -> None:
        check_config(config)
        self._file = config
        with _in_one_line(config):
            super().__init__(["train", "--config", str(config), *overrides], run=False)

    # Only ``train`` is needed here; the stock parsers of the other verbs take a second to build.
    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Return no subcommands of Lightning's trainer."""
        return {}

    @staticmethod
    def anomalib_subcommands() -> dict[str, dict[str, str]]:
        """Return the one subcommand ``train``."""
        return {"train": {"description": "Fit the model and then call test on the trained model."}}

    @staticmethod
    def init_parser(**kwargs: Any) -> ArgumentParser:
        """Build a parser that raises instead of exiting."""
        return AnomalibCLI.init_parser(exit_on_error=False, **kwargs)

    def before_instantiate_classes(self) -> None:
        """Give anomalib's Padim the paper's number of features, for which it has no default."""
        super().before_instantiate_classes()
        self.settings: Namespace = self.config["train"]
        model = self.settings.model.init_args
        if "n_features" in model and model.n_features is None and self.settings.model.class_path.startswith("anomalib"):
            model.n_features = default_n_features(model.backbone)

    def instantiate_classes(self) -> None:
        """Build nothing yet: anomalib's class would, before a seed is applied."""

    # --- What can be said of an experiment without building it ---

    @property
    def writer_settings(self) -> Namespace:
        """The arguments of the callback that writes the results."""
        for callback in self.settings.trainer.callbacks or []:
            if re.fullmatch(r"padim_bottle\.(.+\.)?ResultsWriter", callback.class_path):
                return callback.init_args
        raise UserError(f"{self._file}: it has no padim_bottle.ResultsWriter among its callbacks, so no results.")

    @property
    def is_random(self) -> bool:
        """Whether a seed decides anything; not in a Padim that keeps all channels as they are."""
        model = self.settings.model
        if not model.class_path.startswith("padim_bottle."):
            return True
        chosen = model.init_args
        return is_random(chosen.backbone, chosen.layers, chosen.n_features, chosen.grids)

    def choose(self, seed: int | None = None, experiment: str | None = None, results: Path | None = None) -> None:
        """Override the seed, the name of the results folder, and the folder of all results; ``None`` leaves them."""
        if seed is not None:
            place, name = self._seed_settings()
            place[name] = seed
        if experiment is not None:
            self.writer_settings.experiment = experiment
        if results is not None:
            self.writer_settings.root = str(results)

    def config_sha256(self) -> str:
        """Return the ``config_sha256`` that a run writes to ``metrics.json``."""
        return hashlib.sha256(dump_config(self._parser("train"), self.settings).encode()).hexdigest()

    def data_fingerprint(self) -> str | None:
        """Return the fingerprint of the data that lie on this disk, or ``None`` where there are none."""
        data = instantiate_class((), self.settings.data.as_dict())
        try:
            data.setup()
        except Exception:  # each data module has its own way to say that its files are not there
            return None
        return describe(data).fingerprint

    # --- Building it ---

    def apply_seed(self) -> None:
        """Seed all generators; a model that has no seed of its own is unseeded where the config names none.

        Raises:
            UserError: the seed is not from 0 to 2**32 - 1.
        """
        place, name = self._seed_settings()
        seed = place[name]
        if name == "seed_everything" and (seed is None or isinstance(seed, bool)):
            os.environ.pop("PL_GLOBAL_SEED", None)  # of an earlier run in this process
            return
        if seed is None or seed >= 2**32:
            raise UserError(f"seed: {seed} is not a whole number from 0 to {2**32 - 1}.")
        if seed < 0:
            raise UserError(f"seed: {seed} is negative, choose 0 or more.")
        seed_everything(seed, verbose=False)

    def build(self, *, quiet: bool = False, workplace: Path | None = None) -> None:
        """Make data, model, callbacks and engine; anomalib's classes get the data and weights that ours would find.

        Args:
            quiet: print neither progress bars nor a summary.
            workplace: Lightning's working folder instead of the config's, which is recorded all the same.

        Raises:
            UserError: a value that a class does not accept, in one line.
        """
        self._quiet, self._workplace = quiet, workplace
        model = self.settings.model
        if model.class_path.startswith("padim_bottle.") and model.init_args.pre_trained:
            # Here and not only where the model is built: jsonargparse would turn the error into one of its own.
            locate_weights(model.init_args.backbone)
        with _in_one_line(self._file), weights_for_timm() as found:
            super().instantiate_classes()
        if found:
            self.model.weights = found[0]
        if type(self.datamodule) is anomalib.data.MVTecAD:
            ours = MVTecAD(os.environ.get("MVTEC_AD_ROOT") or self.datamodule.root, self.datamodule.category)
            ours.prepare_data()
            self.datamodule.root = ours.root

    def instantiate_engine(self) -> None:
        """Build anomalib's Engine."""
        trainer = self._get(self.config_init, "trainer")
        self.results_writer = next((c for c in trainer["callbacks"] or [] if isinstance(c, ResultsWriter)), None)
        if self._quiet:
            trainer["enable_progress_bar"] = False
            if self.results_writer is not None:
                self.results_writer.quiet = True
        if self._workplace is not None:
            trainer["default_root_dir"] = self._workplace
        super().instantiate_engine()

    def _seed_settings(self) -> tuple[Namespace, str]:
        """Return where the seed stands: with the model, or with Lightning's for models that have none."""
        model = self.settings.model.init_args
        return (model, "seed") if "seed" in model else (self.settings, "seed_everything")


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


@contextlib.contextmanager
def _in_one_line(config: Path) -> Iterator[None]:
    """Turn jsonargparse's errors into one of ours, which names the config."""
    try:
        yield
    except (ArgumentError, ValueError, TypeError) as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, UserError):
            cause = cause.__cause__ or cause.__context__
        raise UserError(f"{config}: {_explain(error) if cause is None else cause}") from error


def _explain(error: Exception) -> str:
    """Return on one line what a jsonargparse error says is wrong: the key, what it expects, what it got."""
    text = " ".join(str(error).split())
    while problem := re.search(r"Problem with given class_path '([^']+)': (.*)", text):
        text = f"{problem[1]}: {problem[2]}"
    # What follows repeats the whole configuration.
    text = re.split(r" (?:- )?Given value type: <class 'jsonargparse", text)[0]
    text = re.sub(r"Does not validate against any of the Union subtypes Subtypes: .*? Errors: ", "", text)
    text = re.sub(r"Given value type: \S+ \S+ Given value: (\S+)", r"but got '\1'", text)
    text = re.sub(r"<class '([^']+)'>", r"\1", text).replace("Parser key ", "")
    return re.sub(r"^(- )?Expected a NoneType (?!Expected)|(?<= )- ", "", text)
