"""Checks of a YAML file that YAML itself leaves out: a key that stands twice, and the line of an error."""

from pathlib import Path
from typing import Any

import yaml

from padim_bottle.errors import UserError, in_a_line
from padim_bottle.places import find_config

# Keys at the top of configs that people still have.
_OLD_KEYS = {"dataset": "0", "project": "0", "normalization": "1", "results_dir": "1", "task": "1", "metrics": "1"}


def check_config(path: Path) -> Path:
    """Refuse a config that is no YAML mapping or holds a key twice.

    Returns:
        Where it is, see ``find_config``.

    Raises:
        UserError: what is wrong with it, and in which line; or it was written for an older anomalib.
    """
    path = find_config(path)
    if not path.is_file():
        raise UserError(f"There is no config file {path}.")
    try:
        settings = yaml.load(path.read_text(encoding="utf-8-sig"), _OnceLoader)
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: it is no text in UTF-8 (byte {error.start}).") from error
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise UserError(f"{path}: {line}{in_a_line(error.problem or error.context)}.") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: {in_a_line(error)}.") from error
    if not isinstance(settings, dict):
        raise UserError(f"{path}: it holds no settings ('key: value').")
    for key, version in _OLD_KEYS.items():
        if key in settings:
            raise UserError(
                f"{path}: '{key}' is a key of anomalib {version}, which anomalib 2 does not read. Take over what "
                "differs into a copy of configs/padim_resnet18.yaml."
            )
    return path


def read_structured(path: Path, kind: type) -> Any:
    """Read a YAML into a dataclass that says which keys it may hold and of which type they are.

    Raises:
        UserError: as ``check_config``, and an unknown key or a value of another type.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    path = check_config(path)
    try:
        return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), OmegaConf.load(path)))
    except (OmegaConfBaseException, ValueError, TypeError) as error:
        key = getattr(error, "full_key", None)
        message = in_a_line(str(error).splitlines()[0])
        raise UserError(f"{path}: {f'{key}: ' if key else ''}{message}") from error


class _OnceLoader(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping, of which YAML would take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if lines.setdefault(str(key.value), line) != line:
                problem = f"'{key.value}' stands in line {lines[key.value]} already"
                raise yaml.constructor.ConstructorError(problem=problem, problem_mark=key.start_mark)
        return super().construct_mapping(node, deep)
