"""``scripts/train.py``: train and test one experiment."""

import argparse
import atexit
import gc
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from padim_bottle.commands.arguments import add_photo_options, new_parser, photo_settings
from padim_bottle.errors import UnavailableError, UserError, run_command

DEFAULT_CONFIG = Path("configs/padim_resnet18.yaml")

TRAIN_HELP = """\
Train and test one experiment, and write its results.

With photos of your own, a folder of good parts is enough:
  --photos FOLDER [--test FOLDER] [--experiment NAME]

Any key of the YAML can be overridden in anomalib's own spelling, for example
  --model.init_args.n_features 150 --data.init_args.category transistor --trainer.accelerator cpu
"""


def train_command(arguments: Sequence[str] | None = None) -> int:
    """Train, test, write results.

    Args:
        arguments: the command line; that of the process if not given.

    Returns:
        The exit code, see ``run_command``.
    """
    parser = new_parser("train.py", TRAIN_HELP)
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG, help="the experiment (default: %(default)s)")
    parser.add_argument("--seed", type=int, help="decides everything random; overrides the YAML's")
    parser.add_argument("--experiment", help="name of the results folder; overrides the YAML's")
    parser.add_argument("--results", type=Path, help="folder of all results; overrides the YAML's")
    add_photo_options(parser, "train")
    parser.add_argument(
        "--test", type=Path, metavar="FOLDER", help="test on these: a folder a defect type, and 'good' for good parts"
    )
    parser.add_argument(
        "--fallback", type=Path, metavar="CONFIG", help="run this instead where data or weights cannot be had"
    )
    options, overrides = parser.parse_known_args(arguments)
    # At exit Python looks through every object of torch and its kin for garbage: more than a second for nothing.
    atexit.register(gc.freeze)
    return run_command(
        lambda: _train(options, overrides), interrupted="interrupted: nothing half-written was left behind"
    )


def _train(options: argparse.Namespace, overrides: Sequence[str]) -> int:
    from padim_bottle.experiment.train import train

    experiment = options.experiment
    if options.photos is not None:
        for key, value in photo_settings(options.photos, options.group, options.test).items():
            overrides = [f"--{key}", value if isinstance(value, str) else json.dumps(value), *overrides]
        experiment = experiment or re.sub(r"[^\w. +=,-]", "_", options.photos.resolve().name).lstrip(".") or "photos"
    elif options.test is not None or options.group is not None:
        raise UserError("--test and --group belong to --photos; a config names them in its data and its model.")
    try:
        train(options.config, overrides, options.seed, experiment, options.results)
    except UnavailableError as error:
        if options.fallback is None:
            raise
        print(_banner(str(error), options.fallback), file=sys.stderr)
        train(options.fallback, [], options.seed, None, options.results)
        print(_banner("This was the demo, not the experiment.", options.fallback), file=sys.stderr)
    return 0


def _banner(message: str, config: Path) -> str:
    line = "!" * 78
    return (
        f"\n{line}\n{message}\n\nRUNNING THE DEMO INSTEAD: {config}. Synthetic bottles, random weights: its figures "
        f"say nothing\nabout MVTec AD, and its results say so in their name and in metrics.json.\n{line}\n"
    )
