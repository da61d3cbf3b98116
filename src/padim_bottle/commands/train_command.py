"""``train``: train and test one experiment."""

import re
import sys
from pathlib import Path

from padim_bottle.commands.arguments import Override, photo_settings
from padim_bottle.console import quiet_imports
from padim_bottle.errors import UnavailableError, UserError


def train(
    *overrides: Override,
    config: Path = Path("configs/padim_resnet18.yaml"),
    seed: int | None = None,
    experiment: str | None = None,
    results: Path | None = None,
    photos: list[Path] | None = None,
    group: str | None = None,
    test: Path | None = None,
    fallback: Path | None = None,
) -> None:
    """Train and test one experiment, and write its results.

    With photos of your own, a folder of good parts is enough:
      --photos FOLDER [--test FOLDER] [--experiment NAME]
    and another with good parts that were rejected wrongly can be added: --photos GOOD ACCEPTED

    Any key of the YAML can be overridden in anomalib's own spelling, for example
      --model.init_args.n_features 150 --data.init_args.category transistor --trainer.accelerator cpu

    Args:
        overrides: in the spelling of ``anomalib train``.
        config (YAML): the experiment
        seed (NUMBER): decides everything random; overrides the YAML's
        experiment (NAME): name of the results folder; overrides the YAML's
        results (FOLDER): folder of all results; overrides the YAML's
        photos (FOLDER): train on these photos of good parts; of several folders the first names the experiment
        group (PATTERN): which photos show one part: a regular expression with one group on the file name, or
            parent-folder
        test (FOLDER): test on these: a folder a defect type, and 'good' for good parts
        fallback (YAML): run this instead where data or weights cannot be had
    """
    from padim_bottle.experiment.config_check import check_config

    check_config(config)
    with quiet_imports():
        from padim_bottle.experiment.train import train
        from padim_bottle.experiment.variants import spell_argument

    changes: list[str] = list(overrides)
    if photos is not None:
        for key, value in photo_settings(photos, group, test).items():
            changes = [f"--{key}", spell_argument(value), *changes]
        experiment = experiment or re.sub(r"[^\w. +=,-]", "_", photos[0].resolve().name).lstrip(".") or "photos"
    elif test is not None or group is not None:
        raise UserError("--test and --group belong to --photos; a config names them in its data and its model.")
    try:
        train(config, changes, seed, experiment, results)
    except UnavailableError as error:
        if fallback is None:
            raise
        print(_banner(str(error), fallback), file=sys.stderr)
        train(fallback, [], seed, None, results)
        print(_banner("This was the demo, not the experiment.", fallback), file=sys.stderr)


def _banner(message: str, config: Path) -> str:
    line = "!" * 78
    return (
        f"\n{line}\n{message}\n\nRUNNING THE DEMO INSTEAD: {config}. Synthetic bottles, random weights: its figures "
        f"say nothing\nabout MVTec AD, and its results say so in their name and in metrics.json.\n{line}\n"
    )
