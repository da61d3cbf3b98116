"""What a sweep's runs are, and which of them are done. Heavy imports are inside the functions."""

import itertools
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from padim_bottle.errors import UserError
from padim_bottle.experiment.config_check import check_config, read_structured
from padim_bottle.experiment.variants import spell_argument, variants_of
from padim_bottle.files import sha256
from padim_bottle.sweep.group import PlannedRun


@dataclass
class RaySettings:
    """Where groups of runs go, and what each reserves there."""

    address: str | None = None
    num_gpus: float = 0
    num_cpus: float = 2


@dataclass
class SweepSettings:
    """What ``configs/sweep.yaml`` may hold."""

    experiments: list[str] = field(default_factory=list)
    seeds: Any = "0-9"
    overrides: dict[str, Any] = field(default_factory=dict)
    results: str = "results"
    group_size: int = 10
    cache_folder: str | None = None
    max_runs: int = 200
    ray: RaySettings = field(default_factory=RaySettings)


def read_settings(config: Path) -> SweepSettings:
    """Read and check a sweep's YAML.

    Raises:
        UserError: a file that is not there, an unknown key, a value of another type.
    """
    settings: SweepSettings = read_structured(config, SweepSettings)
    if settings.group_size < 1:
        raise UserError(f"{config}: group_size: {settings.group_size} is less than 1.")
    return settings


def plan(settings: SweepSettings) -> list[PlannedRun]:
    """Return all runs of a sweep; every config is parsed, none is built.

    Raises:
        UserError: an unknown file or key, seeds that are no numbers, an empty grid, too many runs, runs that would
            write to the same folder.
    """
    seeds = parse_seeds(settings.seeds)
    grid, fixed = _check_overrides(settings.overrides)
    count = len(settings.experiments) * len(seeds) * math.prod(len(values) for values in grid.values())
    if not settings.experiments:
        raise UserError("experiments: name at least one YAML.")
    if count > settings.max_runs:
        raise UserError(f"These are {count} runs, more than max_runs: {settings.max_runs}. Raise it if that is meant.")
    configs = [Path(config) for config in settings.experiments]
    for config in configs:
        check_config(config)
    runs, root = [], Path(settings.results)
    for config in configs:
        for variant in variants_of(config, grid, fixed):
            experiment = variant.experiment
            name = experiment.writer_settings.experiment + name_suffix(variant.values)
            # A model without anything random has the same figures for every seed.
            for seed in seeds if experiment.is_random else seeds[:1]:
                experiment.choose(seed, name, root)
                runs.append(PlannedRun(config, variant.overrides, root, name, seed, experiment.config_sha256()))
    folder, times = Counter(run.folder for run in runs).most_common(1)[0]
    if times > 1:
        raise UserError(f"Two runs would write to {folder}: give the experiments different names.")
    return runs


def in_shard(runs: Sequence[PlannedRun], shard: str) -> list[PlannedRun]:
    """Return the runs of one of several processes that share a sweep: of ``2/5`` every fifth, from the second on.

    Raises:
        UserError: it is not written so.
    """
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", shard)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UserError(f"--shard {shard}: write the number of this one and how many there are, for example 2/5.")
    return list(runs[int(match[1]) - 1 :: int(match[2])])


def parse_seeds(seeds: Any) -> list[int]:
    """Return the seeds of ``0-9``, ``0,3,7``, ``0-4,10``, a number or a list of numbers, each once.

    Raises:
        UserError: anything else.
    """
    found: list[int] = []
    for part in seeds if isinstance(seeds, list) else str(seeds).split(","):
        match = re.fullmatch(r"\s*(\d{1,9})(?:\s*-\s*(\d{1,9}))?\s*", str(part))
        if match is None:
            raise UserError(f"seeds: '{part}' is no whole number of 0 or more, nor a range such as 0-9.")
        first, last = int(match[1]), int(match[2] or match[1])
        if not first <= last < first + 100_000:
            raise UserError(f"seeds: the range {part} is empty or endless.")
        found += range(first, last + 1)
    if not found:
        raise UserError("seeds: name at least one.")
    return list(dict.fromkeys(found))


def name_suffix(chosen: dict[str, Any]) -> str:
    """Return what a grid's choice adds to an experiment's name, for example ``,n_features=150,layers=layer1+layer2``.

    Only the last part of a key is spelled, unless two keys share it.
    """
    last = [key.rsplit(".", 1)[-1] for key in chosen]
    names = last if len(set(last)) == len(last) else list(chosen)
    spelled = (
        f",{name}={'+'.join(map(str, value)) if isinstance(value, list) else spell_argument(value)}"
        for name, value in zip(names, chosen.values(), strict=True)
    )
    return re.sub(r"[^\w. +=,-]+", "-", "".join(spelled))


def finished(runs: Sequence[PlannedRun]) -> set[PlannedRun]:
    """Return the runs whose results are there, of the same configuration, data and code.

    Raises:
        UserError: a run folder that was edited by hand.
    """
    from padim_bottle.experiment.config import ExperimentConfig
    from padim_bottle.runs.environment import code_digest
    from padim_bottle.runs.folder import RUN_FILES, read_metrics

    fingerprints: dict[tuple[Path, tuple[str, ...]], str | None] = {}
    done = set()
    for run in runs:
        if not all((run.folder / name).is_file() for name in RUN_FILES):
            continue
        try:
            metrics = read_metrics(run.folder)
            recorded = (metrics["config_sha256"], metrics.get("code_sha256"))
            fingerprint = metrics["data"]["fingerprint"]
        except (UserError, KeyError, TypeError) as error:
            raise UserError(f"{run.folder}: metrics.json was changed by hand or is broken: move it away.") from error
        if sha256(run.folder / "config.yaml") != recorded[0]:
            raise UserError(f"{run.folder}: config.yaml is not that of metrics.json: it was changed, move it away.")
        if recorded == (run.config_sha256, code_digest()):
            data = (run.config, run.overrides)
            if data not in fingerprints:
                fingerprints[data] = ExperimentConfig(*data).data_fingerprint()
            if fingerprints[data] in (fingerprint, None):  # without the data here, the record is trusted
                done.add(run)
    return done


def in_groups(runs: Sequence[PlannedRun], size: int) -> list[list[PlannedRun]]:
    """Return runs that can share one pass through the backbone, at most ``size`` together."""
    groups = []
    for _, seeds in itertools.groupby(runs, key=lambda run: (run.config, run.overrides)):
        rest = list(seeds)
        groups += [rest[start : start + size] for start in range(0, len(rest), size)]
    return groups


def _check_overrides(overrides: dict[str, Any]) -> tuple[dict[str, list[Any]], dict[str, Any]]:
    """Return the grid, and the settings that are the same for all."""
    for key, values in overrides.items():
        if isinstance(values, list) and not values:
            raise UserError(f"overrides: {key}: name at least one value, for example [50, 100].")
        if key == "seed_everything" or key in ("model.init_args.seed", "model.seed"):
            raise UserError(f"overrides: {key}: seeds have a key of their own, 'seeds'.")
    grid = {key: values for key, values in overrides.items() if isinstance(values, list)}
    return grid, {key: value for key, value in overrides.items() if key not in grid}
