"""One experiment, from YAML to results: anomalib's CLI class with a seed that applies."""

import contextlib
import hashlib
import logging
import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import timm
from anomalib.cli import AnomalibCLI
from jsonargparse import ArgumentError, ArgumentParser, Namespace
from lightning import seed_everything
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import instantiate_class
from torch import nn

from padim_bottle.data.layout import fingerprint
from padim_bottle.data.mvtec import MVTecAD
from padim_bottle.errors import UserError
from padim_bottle.experiment.config_check import check_class_paths, check_config
from padim_bottle.experiment.results_writer import ResultsWriter, dump_config
from padim_bottle.model.backbone import LOCAL_PREFIX, Weights, default_n_features, locate_weights


class ExperimentCLI(AnomalibCLI):
    """Parses a config exactly as ``anomalib train`` does; ``run`` then trains and tests.

    Beyond the stock class, the seed is applied before anything is built, data are prepared before training starts,
    and anomalib's own classes (the control) are pointed to the same data and weights as ours.

    Args:
        config: YAML file in the stock CLI's layout.
        overrides: arguments in the stock CLI's spelling.
        seed: overrides the config's.
        experiment: overrides the name of the results folder.
        results: overrides the folder of all results.
        quiet: print neither progress bars nor a summary.
        workplace: Lightning's working folder instead of the config's, which is recorded all the same.

    Raises:
        UserError: a key, type or value that the config cannot have, in one line.
    """

    def __init__(
        self,
        config: Path,
        overrides: Sequence[str] = (),
        *,
        seed: int | None = None,
        experiment: str | None = None,
        results: Path | None = None,
        quiet: bool = False,
        workplace: Path | None = None,
    ) -> None:
        self._quiet = quiet
        self._workplace = workplace
        self._seed = seed
        self._results = {"experiment": experiment, "root": None if results is None else str(results)}
        self._config_file = config
        check_config(config)
        try:
            super().__init__(["train", "--config", str(config), *overrides], run=False)
        except (ArgumentError, ValueError, TypeError) as error:
            kind = type(_user_error(error) or UserError())
            raise kind(f"{config}: {explain(error)}") from error

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
        """Apply the seed and the overrides of the results folder, and point anomalib's classes to data and weights."""
        super().before_instantiate_classes()
        config = self.config["train"]
        check_class_paths(config.as_dict(), self._config_file)  # also those of overrides, and those in short form
        arguments = config.model.init_args
        if self._seed is not None:
            _set_seed(config, self._seed)
        seed = arguments.get("seed", config.seed_everything)
        if "seed" not in arguments and (seed is None or isinstance(seed, bool)):
            # The stock default: a model of anomalib's is then unseeded, as it is under the stock CLI.
            os.environ.pop("PL_GLOBAL_SEED", None)
        else:
            if seed is None or seed >= 2**32:
                raise UserError(f"seed: {seed} is not a whole number from 0 to {2**32 - 1}.")
            if seed < 0:
                raise UserError(f"seed: {seed} is negative, choose 0 or more.")
            seed_everything(seed, verbose=False)
        for arguments_of_writer in _writers(config):
            for name, value in self._results.items():
                if value is not None:
                    arguments_of_writer[name] = value
        if config.model.class_path.startswith("anomalib."):
            _fill_in(config)

    def instantiate_classes(self) -> None:
        """Build everything; a model of anomalib's gets the weights that ours would find, and notes which they are."""
        with weights_for_timm() as found:
            super().instantiate_classes()
        if found:
            self.model.weights = found[0]

    def instantiate_engine(self) -> None:
        """Build anomalib's Engine."""
        trainer = self._get(self.config_init, "trainer")
        callbacks = trainer["callbacks"] or []
        self.results_writer = next((c for c in callbacks if isinstance(c, ResultsWriter)), None)
        if self._quiet:
            trainer["enable_progress_bar"] = False
        if self._workplace is not None:
            trainer["default_root_dir"] = self._workplace
        if self.results_writer is not None:
            self.results_writer.quiet = self._quiet
        super().instantiate_engine()

    def run(self) -> None:
        """Train and test.

        Raises:
            UserError: among others, what Lightning's Trainer does not accept.
        """
        self.datamodule.prepare_data()
        for attempt in range(50):
            try:
                self.engine.train(model=self.model, datamodule=self.datamodule)
                return
            except (FileExistsError, FileNotFoundError):  # noqa: PERF203
                # Runs that begin or end together meet in anomalib's numbered working folder: take the next number.
                if self.engine._trainer is not None or attempt == 49:
                    raise
                time.sleep(0.02)
            except (ValueError, MisconfigurationException) as error:
                if self.engine._trainer is not None:
                    raise
                raise UserError(f"trainer: {' '.join(str(error).split())}") from error


class ParsedExperiment(ExperimentCLI):
    """An experiment that is parsed and checked, but not built: it tells what its runs would be.

    Attributes:
        experiment: name of the results folder.
        root: folder of all results.

    Raises:
        UserError: as ``ExperimentCLI``, and for a config without a ``ResultsWriter``.
    """

    def __init__(self, config: Path, overrides: Sequence[str] = (), *, results: Path | None = None) -> None:
        super().__init__(config, overrides, results=results)
        writers = _writers(self.config["train"])
        if not writers:
            raise UserError(f"{config}: it has no padim_bottle.ResultsWriter among its callbacks, so no results.")
        self._writer = writers[0]
        self.experiment: str = self._writer.experiment
        self.root = Path(self._writer.root)

    def instantiate_classes(self) -> None:
        """Build nothing."""

    def config_sha256(self, experiment: str, seed: int) -> str:
        """Return the ``config_sha256`` that the run of this name and seed writes to ``metrics.json``."""
        config = self.config["train"]
        _set_seed(config, seed)
        self._writer.experiment = experiment
        return hashlib.sha256(dump_config(self._parser("train"), config).encode()).hexdigest()

    def data_fingerprint(self) -> str | None:
        """Return the fingerprint of the data that lie on this disk, or ``None`` where there are none."""
        data = instantiate_class((), self.config["train"].data.as_dict())
        if not Path(data.root, data.category).is_dir():
            return None
        return fingerprint(data.root, data.category)


def _set_seed(config: Namespace, seed: int) -> None:
    if "seed" in config.model.init_args:
        config.model.init_args.seed = seed
    else:
        config.seed_everything = seed


def _writers(config: Namespace) -> list[Namespace]:
    """Return the arguments of each ``ResultsWriter`` among a config's callbacks."""
    return [
        callback.init_args
        for callback in config.trainer.callbacks or []
        if callback.class_path.startswith("padim_bottle.") and callback.class_path.endswith(".ResultsWriter")
    ]


@contextlib.contextmanager
def weights_for_timm() -> Iterator[list[Weights]]:
    """Let ``timm.create_model`` find pretrained weights where ``locate_weights`` looks, and say what it found.

    anomalib's models name a backbone and leave the rest to timm, which looks on the Hugging Face hub alone.
    """
    create_model, found = timm.create_model, []

    def create(name: str, pretrained: bool = False, **arguments: Any) -> nn.Module:
        if pretrained and not name.startswith(LOCAL_PREFIX):
            name, weights = locate_weights(name)
            found.append(weights)
        return create_model(name, pretrained=pretrained, **arguments)

    timm.create_model = create
    try:
        yield found
    finally:
        timm.create_model = create_model


def _fill_in(config: Namespace) -> None:
    """Give anomalib's own classes what they have no default for, and the data that ours would find."""
    model, data = config.model.init_args, config.data
    if "n_features" in model and model.n_features is None:
        model.n_features = default_n_features(model.backbone)
    if data.class_path in ("anomalib.data.MVTecAD", "anomalib.data.datamodules.image.mvtecad.MVTecAD"):
        ours = MVTecAD(root=os.environ.get("MVTEC_AD_ROOT") or data.init_args.root, category=data.init_args.category)
        ours.prepare_data()
        data.init_args.root = str(ours.root)


def explain(error: BaseException) -> str:
    """Return on one line what a jsonargparse error says is wrong: the key, what it expects, what it got."""
    if (cause := _user_error(error)) is not None:
        return str(cause)
    text = " ".join(str(error).split())
    problems = re.findall(r"Problem with given class_path '([^']+)': (.*)", text)
    while problems:
        class_path, text = problems[-1]
        text = f"{class_path}: {text}"
        problems = re.findall(r"Problem with given class_path '([^']+)': (.*)", text)
    # What follows repeats the whole configuration.
    text = re.split(r" (?:- )?Given value type: <class 'jsonargparse", text)[0]
    text = re.sub(r"Does not validate against any of the Union subtypes Subtypes: .*? Errors: ", "", text)
    text = re.sub(r"Given value type: \S+ \S+ Given value: (\S+)", r"but got '\1'", text)
    text = re.sub(r"<class '([^']+)'>", r"\1", text).replace("Parser key ", "")
    return re.sub(r"^(- )?Expected a NoneType (?!Expected)|(?<= )- ", "", text)


def _user_error(error: BaseException | None) -> UserError | None:
    """Find the error of ours that a class raised while jsonargparse built it."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__ or error.__context__
    return error


logging.getLogger("anomalib.cli").setLevel(logging.ERROR)
