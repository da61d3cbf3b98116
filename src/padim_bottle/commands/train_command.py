"""``train``: train and test one experiment."""

import re
import sys
from pathlib import Path

from padim_bottle.commands.arguments import Override, photo_settings
from padim_bottle.console import quiet_imports
from padim_bottle.errors import UnavailableError, UserError


def train(
    *overrides: Override,
    config: Path | None = None,
    seed: int | None = None,
    experiment: str | None = None,
    results: Path | None = None,
    photos: list[Path] | None = None,
    group: str | None = None,
    test: Path | None = None,
    keep_rejecting: Path | None = None,
    previous: Path | None = None,
    region: Path | None = None,
    fallback: Path | None = None,
) -> int:
    """Train and test one experiment, and write its results.

    With photos of your own, a folder of good parts is enough:
      --photos FOLDER [--test FOLDER] [--experiment NAME]
    and another with good parts that were rejected wrongly can be added: --photos GOOD ACCEPTED
    The report says what changed against the run before. With --keep-rejecting FOLDER a model that lets a known defect
    pass does not take its place: the exit code is 1, and the run lies beside it.

    Any key of the YAML can be overridden in anomalib's own spelling, for example
      --model.init_args.n_features 150 --data.init_args.category transistor --trainer.accelerator cpu

    Args:
        overrides: in the spelling of ``anomalib train``.
        config (YAML): the experiment (default: configs/padim_resnet18.yaml, and for photos of your own
            configs/padim_resnet18_grids.yaml, which finds more with few of them)
        seed (NUMBER): decides everything random; overrides the YAML's
        experiment (NAME): name of the results folder; overrides the YAML's
        results (FOLDER): folder of all results; overrides the YAML's
        photos (FOLDER): train on these photos of good parts; of several folders the first names the experiment
        group (PATTERN): which photos show one part: a regular expression with one group on the file name, or
            parent-folder
        test (FOLDER): test on these: a folder a defect type, and 'good' for good parts
        keep_rejecting (FOLDER): photos of known defects, all of which must still be rejected
        previous (RUN): say what changed against this run, not against the one whose place is taken
        region (PICTURE): white where photos count, black elsewhere, of any size with the photos' aspect
        fallback (YAML): run this instead where data or weights cannot be had
    """
    from padim_bottle.experiment.config_check import check_config

    config = config or Path("configs", "padim_resnet18.yaml" if photos is None else "padim_resnet18_grids.yaml")
    check_config(config)
    with quiet_imports():
        from padim_bottle.experiment.train import train
        from padim_bottle.experiment.variants import spell_argument

    changes: list[str] = list(overrides)
    if photos is not None:
        for key, value in photo_settings(photos, group, test, keep_rejecting, region).items():
            changes = [f"--{key}", spell_argument(value), *changes]
        experiment = experiment or re.sub(r"[^\w. +=,-]", "_", photos[0].resolve().name).lstrip(".") or "photos"
    elif any(option is not None for option in (test, group, keep_rejecting, previous, region)):
        raise UserError(
            "--test, --group, --keep-rejecting, --previous and --region belong to --photos; a config names them in its "
            "data and its model, but for --previous."
        )
    try:
        trained = train(config, changes, seed, experiment, results, previous)
    except UnavailableError as error:
        if fallback is None:
            raise
        print(_banner(str(error), fallback), file=sys.stderr)
        train(fallback, [], seed, None, results)
        print(_banner("This was the demo, not the experiment.", fallback), file=sys.stderr)
        return 0
    if trained.results_writer is None or trained.results_writer.refused is None:
        return 0
    print(trained.results_writer.refused, file=sys.stderr)
    return 1


def _banner(message: str, config: Path) -> str:
    line = "!" * 78
    return (
        f"\n{line}\n{message}\n\nRUNNING THE DEMO INSTEAD: {config}. Synthetic bottles, random weights: its figures "
        f"say nothing\nabout MVTec AD, and its results say so in their name and in metrics.json.\n{line}\n"
    )
