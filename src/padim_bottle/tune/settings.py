"""What ``configs/tune.yaml`` may hold, and the settings that a grid makes of a config. Heavy imports are inside."""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from padim_bottle.console import quiet_imports
from padim_bottle.errors import UserError
from padim_bottle.experiment.config_check import read_structured

if TYPE_CHECKING:
    from padim_bottle.experiment.cli import ExperimentCLI

KINDS = ("perlin", "patch", "missing", "warp", "scratch")
METRICS = {"image_AUROC": "image AUROC", "pixel_AUROC": "pixel AUROC", "pixel_AUPRO": "AUPRO", "pixel_AUPIMO": "AUPIMO"}
"""What a setting is judged by, and what it is called."""
PREFIX = "model.init_args."


@dataclass
class AnomalySettings:
    """What synthetic anomalies look like; lengths are shares of a photo's shorter side."""

    seed: int = 0
    kinds: list[str] = field(default_factory=lambda: list(KINDS))
    size: list[float] = field(default_factory=lambda: [0.05, 0.3])
    scratch_width: list[float] = field(default_factory=lambda: [0.004, 0.012])
    strength: list[float] = field(default_factory=lambda: [0.3, 1.0])


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


@dataclass(frozen=True)
class Candidate:
    """A setting of the grid: its values, and the config that they make."""

    values: dict[str, Any]
    cli: "ExperimentCLI"

    @property
    def name(self) -> str:
        """The values as a table spells them, for example ``support 0.5, guided null``."""
        spelled = (f"{key.removeprefix(PREFIX)} {spell(value)}" for key, value in self.values.items())
        return ", ".join(spelled).replace('"', "") or "as configured"


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
            raise UserError(f"--grid {argument}: {' '.join(str(error).split())}.") from error
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
) -> list[Candidate]:
    """Return all settings of a grid; every one is parsed, none is built.

    Args:
        config: the YAML that is tuned.
        grid: the values of each key.
        fixed: keys whose value replaces the config's in all settings.

    Raises:
        UserError: a key, type or value that the config cannot have, or another model than ``padim_bottle.Padim``.
    """
    with quiet_imports():
        from padim_bottle.experiment.cli import ExperimentCLI

    candidates = []
    for combination in itertools.product(*grid.values()):
        values = dict(zip(grid, combination, strict=True))
        overrides = [word for key, value in {**(fixed or {}), **values}.items() for word in (f"--{key}", spell(value))]
        cli = ExperimentCLI(config, overrides)
        if not cli.settings.model.class_path.startswith("padim_bottle."):
            raise UserError(f"{config}: {cli.settings.model.class_path} cannot be tuned, padim_bottle.Padim can.")
        candidates.append(Candidate(values, cli))
    return candidates


def spell(value: Any) -> str:
    """Return a value as it stands in a YAML and on a command line."""
    return value if isinstance(value, str) else json.dumps(value).replace("Infinity", ".inf")
