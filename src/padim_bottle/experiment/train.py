"""One experiment, from YAML to results: config, seed, data, model, callbacks, engine, train, test."""

import gc
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from padim_bottle.console import quiet_imports
from padim_bottle.errors import UserError, in_a_line

if TYPE_CHECKING:
    from padim_bottle.experiment.cli import ExperimentCLI

_ATTEMPTS = 50


def train(
    config: Path,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    experiment: str | None = None,
    results: Path | None = None,
) -> "ExperimentCLI":
    """Train and test what a config describes, through anomalib's Engine.

    Args:
        config: YAML file, in the stock CLI's layout.
        overrides: in the stock CLI's spelling, for example ``["--data.init_args.category", "cable"]``.
        seed: overrides the config's.
        experiment: overrides the name of the results folder.
        results: overrides the folder of all results.

    Returns:
        The experiment, with ``engine``, ``model``, ``datamodule`` and ``results_writer``.

    Raises:
        UserError: whatever the user can mend.
    """
    built = build(config, overrides, seed, experiment, results)
    run(built)
    return built


def build(
    config: Path,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    experiment: str | None = None,
    results: Path | None = None,
    *,
    quiet: bool = False,
    workplace: Path | None = None,
) -> "ExperimentCLI":
    """Parse a config, apply its seed, and build data, model, callbacks and engine.

    Args:
        config: as in ``train``, and so the next four.
        overrides: as in ``train``.
        seed: as in ``train``.
        experiment: as in ``train``.
        results: as in ``train``.
        quiet: print neither progress bars nor a summary.
        workplace: Lightning's working folder instead of the config's, which is recorded all the same.

    Raises:
        UserError: whatever the user can mend.
    """
    with quiet_imports():
        from padim_bottle.experiment.cli import ExperimentCLI
    if not gc.get_freeze_count():
        # What was just loaded stays: the collector need not look for garbage among a million objects, again and again.
        gc.freeze()
    cli = ExperimentCLI(config, overrides)
    cli.choose(seed, experiment, results)
    cli.apply_seed()
    cli.build(quiet=quiet, workplace=workplace)
    return cli


def run(experiment: "ExperimentCLI") -> None:
    """Train and test what was built; the callback ``ResultsWriter`` writes the results.

    Raises:
        UserError: among others, what Lightning's Trainer does not accept.
    """
    from anomalib.data.errors import MisMatchError
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    # Before training starts, and not in the middle of Lightning's preparations, data are fetched and checked.
    try:
        experiment.datamodule.prepare_data()
        experiment.datamodule.setup()
    # What anomalib's data modules raise for files that are not there or do not belong together.
    except (FileNotFoundError, NotADirectoryError, ValueError, RuntimeError, MisMatchError) as error:
        raise UserError(f"data: {in_a_line(error)}.") from error
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
