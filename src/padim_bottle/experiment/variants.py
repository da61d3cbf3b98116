"""The variants of an experiment that a grid of settings makes. Heavy imports are inside the function."""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from padim_bottle.console import quiet_imports

if TYPE_CHECKING:
    from padim_bottle.experiment.config import ExperimentConfig


@dataclass(frozen=True)
class Variant:
    """One choice of a grid's values, and the experiment that it makes.

    Attributes:
        values: the grid's keys with the values that were chosen.
        overrides: these and the fixed ones in the stock CLI's spelling.
        experiment: parsed, not built.
    """

    values: dict[str, Any]
    overrides: tuple[str, ...]
    experiment: "ExperimentConfig"


def variants_of(
    config: Path, grid: Mapping[str, Sequence[Any]], fixed: Mapping[str, Any] | None = None
) -> Iterator[Variant]:
    """Yield the variant of every combination of a grid's values; each is parsed, none is built.

    Args:
        config: the experiment's YAML.
        grid: the values of each key.
        fixed: keys whose value replaces the config's in all variants.

    Raises:
        UserError: a key, type or value that the config cannot have.
    """
    with quiet_imports():
        from padim_bottle.experiment.config import ExperimentConfig

    for combination in itertools.product(*grid.values()):
        values = dict(zip(grid, combination, strict=True))
        words = ((f"--{key}", spell_argument(value)) for key, value in {**(fixed or {}), **values}.items())
        overrides = tuple(itertools.chain.from_iterable(words))
        yield Variant(values, overrides, ExperimentConfig(config, overrides))


def spell_argument(value: Any) -> str:
    """Return a value as it stands in a YAML and on a command line."""
    return value if isinstance(value, str) else json.dumps(value).replace("Infinity", ".inf")
