"""Anomalib's command line, with a seed that applies and errors for people.

The heavy imports are inside the functions: ``--help`` answers at once.
"""

import atexit
import contextlib
import gc
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from padim_bottle.command_line import fail, new_parser
from padim_bottle.errors import UnavailableError, UserError

DEFAULT_CONFIG = Path("configs/padim_resnet18.yaml")

TRAIN_HELP = """\
Train and test one experiment, and write its results.

Any key of the YAML can be overridden in anomalib's own spelling, for example
  --model.init_args.n_features 150 --data.init_args.category transistor --trainer.accelerator cpu
"""


def train_command(arguments: Sequence[str] | None = None) -> int:
    """Run ``scripts/train.py``: train, test, write results.

    Args:
        arguments: the command line; that of the process if not given.

    Returns:
        The exit code: 0, 2 for an error that the user can mend, 130 when interrupted.
    """
    parser = new_parser("train.py", TRAIN_HELP)
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG, help="the experiment (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="decides everything random; overrides the YAML's")
    parser.add_argument("--experiment", help="name of the results folder; overrides the YAML's")
    parser.add_argument("--results", type=Path, help="folder of all results; overrides the YAML's")
    parser.add_argument(
        "--fallback", type=Path, metavar="CONFIG", help="run this instead where data or weights cannot be had"
    )
    options, overrides = parser.parse_known_args(arguments)
    # At exit Python looks through every object of torch and its kin for garbage: more than a second for nothing.
    atexit.register(gc.freeze)
    try:
        try:
            train(options.config, overrides, options.seed, options.experiment, options.results)
        except UnavailableError as error:
            if options.fallback is None:
                raise
            print(_banner(str(error), options.fallback), file=sys.stderr)
            train(options.fallback, [], options.seed, None, options.results)
            print(_banner("This was the demo, not the experiment.", options.fallback), file=sys.stderr)
    except (KeyboardInterrupt, SystemExit):  # Lightning turns the one into the other
        print("interrupted: nothing half-written was left behind", file=sys.stderr)
        return 130
    except Exception as error:
        return fail(error)
    return 0


def train(
    config: Path,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    experiment: str | None = None,
    results: Path | None = None,
) -> Any:
    """Train and test what a config describes, through anomalib's Engine.

    Args:
        config: YAML file, in the stock CLI's layout.
        overrides: in the stock CLI's spelling, for example ``["--data.init_args.category", "cable"]``.
        seed: overrides the config's.
        experiment: overrides the name of the results folder.
        results: overrides the folder of all results.

    Returns:
        The instantiated ``ExperimentCLI``, with ``engine``, ``model`` and ``datamodule``.

    Raises:
        UserError: whatever the user can mend.
    """
    if not config.is_file():
        raise UserError(f"There is no config file {config}.")
    experiment_class = load_experiment_class()
    cli = experiment_class(config, overrides, seed=seed, experiment=experiment, results=results)
    cli.run()
    return cli


def load_experiment_class() -> Any:
    """Load anomalib and what builds on it, without its warnings, and return ``ExperimentCLI``."""
    with quiet_imports():
        from padim_bottle.experiment.cli import ExperimentCLI
    if not gc.get_freeze_count():
        # What was just loaded stays: the collector need not look for garbage among a million objects, again and again.
        gc.freeze()
    return ExperimentCLI


@contextlib.contextmanager
def quiet_imports() -> Iterator[None]:
    """Silence the libraries that are imported within, while they are loaded and from then on."""
    quiet()
    yield
    # Once more: anomalib and Lightning set warning filters and the levels of their loggers when they are loaded.
    quiet()


def quiet() -> None:
    """Silence what libraries say that a user can do nothing about."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    for message in (
        ".*configure_optimizers. returned .None.*",
        ".*in eval mode at the start of training.*",
        ".*does not have many workers.*",
        ".*smaller than the logging interval.*",
        ".*LeafSpec.*",
        ".*Please use.*weights_only.*",
    ):
        warnings.filterwarnings("ignore", message=message)
    for name in ("lightning.pytorch", "lightning.fabric", "lightning_fabric", "pytorch_lightning", "anomalib", "timm"):
        logging.getLogger(name).setLevel(logging.ERROR)
        logging.getLogger(f"{name}.utilities.rank_zero").setLevel(logging.ERROR)


def _banner(message: str, config: Path) -> str:
    line = "!" * 78
    return (
        f"\n{line}\n{message}\n\nRUNNING THE DEMO INSTEAD: {config}. Synthetic bottles, random weights: its figures "
        f"say nothing\nabout MVTec AD, and its results say so in their name and in metrics.json.\n{line}\n"
    )
