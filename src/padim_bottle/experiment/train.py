"""One experiment, from YAML to results."""

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from padim_bottle.console import quiet_imports
from padim_bottle.errors import UserError


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
