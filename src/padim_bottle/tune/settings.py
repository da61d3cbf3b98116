"""What ``configs/tune.yaml`` may hold, and the settings that a grid makes of a config."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from padim_bottle.data.defects import KINDS, AnomalySettings
from padim_bottle.errors import UserError, in_a_line
from padim_bottle.evaluation.metrics import headings
from padim_bottle.experiment.config_check import read_structured
from padim_bottle.experiment.variants import Variant, spell_argument, variants_of

METRICS = headings(threshold="none")
"""What a setting is judged by, and what it is called."""
PREFIX = "model.init_args."


@dataclass
class TuneSettings:
    """What ``configs/tune.yaml`` may hold."""

    splits: int = 5
    held_out: float = 1 / 3
    seeds: list[int] = field(default_factory=lambda: [0, 1])
    choose_by: list[str] = field(default_factory=lambda: list(METRICS))
    anomalies: AnomalySettings = field(default_factory=AnomalySettings)
    results: str = "results/tuning"
    cache_folder: str | None = None


def read_settings(config: Path) -> TuneSettings:
    """Read and check the YAML of the tuning.

    Raises:
        UserError: a file that is not there, an unknown key, a value that cannot be.
    """
    settings: TuneSettings = read_structured(config, TuneSettings)
    anomalies = settings.anomalies
    problems = {
        f"splits: {settings.splits} is less than 2, so no spread could be told.": settings.splits < 2,
        f"held_out: {settings.held_out} is not between 0 and 1.": not 0 < settings.held_out < 1,
        "seeds: name at least one, each 0 or more.": not settings.seeds or min(settings.seeds) < 0,
        f"choose_by: choose from {', '.join(METRICS)}.": not settings.choose_by or {*settings.choose_by} - {*METRICS},
        f"anomalies.kinds: choose from {', '.join(KINDS)}.": not anomalies.kinds or {*anomalies.kinds} - {*KINDS},
    }
    for name in ("size", "scratch_width", "strength"):
        limits = getattr(anomalies, name)
        wrong = len(limits) != 2 or not 0 < limits[0] <= limits[1] <= 1
        problems[f"anomalies.{name}: {limits} is not two shares between 0 and 1, the smaller one first."] = wrong
    for problem, found in problems.items():
        if found:
            raise UserError(f"{config}: {problem}")
    return settings


def read_grid(arguments: Sequence[str]) -> dict[str, list[Any]]:
    """Read ``model.init_args.support=[0, 0.5, 1]`` and its like.

    Raises:
        UserError: an argument without a list of values, or a key that is none of the model's or the seed.
    """
    grid: dict[str, list[Any]] = {}
    for argument in arguments:
        key, _, text = argument.partition("=")
        try:
            values = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UserError(f"--grid {argument}: {in_a_line(error)}.") from error
        if not isinstance(values, list) or not values:
            raise UserError(f"--grid {argument}: give a list of values, as in {PREFIX}support=[0, 0.5, 1].")
        if not key.startswith(PREFIX):
            raise UserError(f"--grid {key}: only the model's arguments can be tuned, {PREFIX}<argument>.")
        if key == f"{PREFIX}seed":
            raise UserError(f"--grid {key}: seeds stand in the YAML of the tuning.")
        if key in grid:
            raise UserError(f"--grid {key}: it is given twice.")
        grid[key] = values
    return grid


def candidates_of(
    config: Path, grid: Mapping[str, Sequence[Any]], fixed: Mapping[str, Any] | None = None
) -> list[Variant]:
    """Return all settings of a grid; see ``variants_of``.

    Raises:
        UserError: also another model than ``padim_bottle.Padim``.
    """
    candidates = list(variants_of(config, grid, fixed))
    kind = candidates[0].experiment.settings.model.class_path
    if not kind.startswith("padim_bottle."):
        raise UserError(f"{config}: {kind} cannot be tuned, padim_bottle.Padim can.")
    return candidates


def name_of(values: Mapping[str, Any]) -> str:
    """Return a choice of values as a table spells it, for example ``support 0.5, guided null``."""
    spelled = (f"{key.removeprefix(PREFIX)} {spell_argument(value)}" for key, value in values.items())
    return ", ".join(spelled).replace('"', "") or "as configured"
