"""Runs of a sweep, and how a group of them is done in one process.

Heavy imports are inside the functions.
"""

import gc
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from padim_bottle.console import quiet_imports
from padim_bottle.errors import explain_failure, in_a_line


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep.

    Attributes:
        config: the experiment's YAML.
        overrides: in the stock CLI's spelling.
        root: folder of all results.
        experiment: name of the results folder.
        seed: decides everything random.
        config_sha256: digest of the ``config.yaml`` that it will write.
    """

    config: Path
    overrides: tuple[str, ...]
    root: Path
    experiment: str
    seed: int
    config_sha256: str

    @property
    def folder(self) -> Path:
        """Where its results go."""
        return self.root / self.experiment / f"seed_{self.seed}"

    def __str__(self) -> str:
        return f"{self.experiment}/seed_{self.seed}"


@dataclass(frozen=True)
class Outcome:
    """What became of a run: why it failed, in a line and with its traceback, or neither."""

    run: PlannedRun
    seconds: float
    error: str | None = None
    traceback: str | None = None

    @classmethod
    def failed(cls, run: PlannedRun, error: BaseException, seconds: float = 0) -> "Outcome":
        """Return that an error ended a run."""
        name, said = type(error).__name__, in_a_line(error)
        line = explain_failure(error) or (name if said == name else f"{name}: {said}")
        return cls(run, seconds, line, "".join(traceback.format_exception(error)))


def train_group(
    runs: Sequence[PlannedRun], workplace: Path, cache_folder: Path, results: Path | None = None
) -> Iterator[Outcome]:
    """Train and test runs that differ in their seeds alone, exactly as ``scripts/train.py`` does.

    Args:
        runs: of one experiment.
        workplace: Lightning's working folder.
        cache_folder: where the backbone's features wait for the other seeds.
        results: write to this folder of all results instead of the runs' own.

    Yields:
        What became of each run, as soon as it is known.
    """
    with quiet_imports():
        from padim_bottle.experiment import train
        from padim_bottle.experiment.config import ExperimentConfig
        from padim_bottle.sweep.feature_cache import FeatureCache

    cache = FeatureCache(cache_folder)
    for run in runs:
        started = time.perf_counter()
        failure: Exception | None = None
        experiment: Any = None
        try:
            parsed = ExperimentConfig(run.config, run.overrides).choose(run.seed, run.experiment, run.root)
            experiment = train.build(parsed, quiet=True, workplace=workplace)
            experiment.results_writer.root = results or run.root
            with cache.shared(experiment) as seed:
                experiment.results_writer.features_from_seed = seed
                train.run(experiment)
        except Exception as error:  # of any kind: the other runs go on
            failure = error
        seconds = time.perf_counter() - started
        outcome = Outcome(run, seconds) if failure is None else Outcome.failed(run, failure, seconds)
        experiment = failure = None
        gc.collect()  # a trainer and its model refer to each other
        yield outcome
