"""An experiment's YAML, parsed and checked by the stock CLI's parser; what can be said of it before it is built."""

import contextlib
import hashlib
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from anomalib.cli import AnomalibCLI
from anomalib.utils.config import update_config
from jsonargparse import ArgumentError, ArgumentParser, Namespace
from lightning.pytorch.cli import instantiate_class

from padim_bottle.data.samples import describe
from padim_bottle.errors import UserError
from padim_bottle.experiment.config_check import check_config
from padim_bottle.model.backbone import default_n_features, is_random
from padim_bottle.runs.workspace import dump_config

logging.getLogger("anomalib.cli").setLevel(logging.ERROR)


class ExperimentConfig:
    """A config of one experiment.

    Args:
        path: YAML file in the stock CLI's layout.
        overrides: arguments in the stock CLI's spelling.

    Attributes:
        settings: the config as resolved; assign to it to change it before it is built.
        parser: the parser that read it, which builds what it describes.

    Raises:
        UserError: a key, type or value that the config cannot have, in one line.
    """

    def __init__(self, path: Path, overrides: Sequence[str] = ()) -> None:
        self.path = check_config(path)
        self.parser = stock_parser()
        with in_one_line(path):
            parsed = self.parser.parse_args(["--config", str(self.path), *overrides])
        self.settings: Namespace = update_config(parsed)
        model = self.settings.model
        # The paper's number of features, for which anomalib's Padim has no default.
        if model.class_path.startswith("anomalib") and model.init_args.get("n_features", 0) is None:
            model.init_args.n_features = default_n_features(model.init_args.backbone)

    @property
    def writer_settings(self) -> Namespace:
        """The arguments of the callback that writes the results."""
        for callback in self.settings.trainer.callbacks or []:
            if re.fullmatch(r"padim_bottle\.(.+\.)?ResultsWriter", callback.class_path):
                return callback.init_args
        raise UserError(f"{self.path}: it has no padim_bottle.ResultsWriter among its callbacks, so no results.")

    @property
    def is_random(self) -> bool:
        """Whether a seed decides anything; not in a Padim that keeps all channels as they are."""
        model = self.settings.model
        if not model.class_path.startswith("padim_bottle."):
            return True
        chosen = model.init_args
        return is_random(chosen.backbone, chosen.layers, chosen.n_features, chosen.grids)

    @property
    def seed(self) -> int | bool | None:
        """The model's seed; Lightning's for a model that has none."""
        place, name = self._seed_settings()
        return place[name]

    def choose(
        self, seed: int | None = None, experiment: str | None = None, results: Path | None = None
    ) -> "ExperimentConfig":
        """Override the seed, the name of the results folder, and the folder of all results; ``None`` leaves them."""
        if seed is not None:
            place, name = self._seed_settings()
            place[name] = seed
        if experiment is not None:
            self.writer_settings.experiment = experiment
        if results is not None:
            self.writer_settings.root = str(results)
        return self

    def config_sha256(self) -> str:
        """Return the ``config_sha256`` that a run writes to ``metrics.json``."""
        return hashlib.sha256(dump_config(self.parser, self.settings).encode()).hexdigest()

    def data_fingerprint(self) -> str | None:
        """Return the fingerprint of the data that lie on this disk, or ``None`` where there are none."""
        data = instantiate_class((), self.settings.data.as_dict())
        try:
            data.setup()
        except Exception:  # each data module has its own way to say that its files are not there
            return None
        return describe(data).fingerprint

    def _seed_settings(self) -> tuple[Namespace, str]:
        model = self.settings.model.init_args
        return (model, "seed") if "seed" in model else (self.settings, "seed_everything")


def stock_parser() -> ArgumentParser:
    """Return the parser of ``anomalib train``, one that raises instead of exiting."""
    stock = AnomalibCLI.__new__(AnomalibCLI)  # not one that reads a command line
    stock.subcommand_method_arguments = {}
    parser = AnomalibCLI.init_parser(exit_on_error=False)
    stock.add_train_arguments(parser)
    return parser


@contextlib.contextmanager
def in_one_line(config: Path) -> Iterator[None]:
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
    # What follows repeats the whole configuration, or all arguments of a class.
    text = re.split(r" (?:- )?Given value type: <class '(?:jsonargparse|dict)", text)[0]
    text = re.sub(r"Does not validate against any of the Union subtypes Subtypes: .*? Errors: ", "", text)
    text = re.sub(r"Given value type: \S+ \S+ Given value: (\S+)", r"but got '\1'", text)
    text = re.sub(r"\.? Got value: (\S+)$", r" but got '\1'", text)
    text = re.sub(r"'(\w+)' object has no attribute 'keys'", r"init_args: expected 'key: value', but got a \1", text)
    text = re.sub(r"<class '([^']+)'>", r"\1", text).replace("Parser key ", "")
    return re.sub(r"^(- )?Expected a NoneType (?!Expected)|(?<= )- ", "", text)
