"""Checks of a config file that YAML and jsonargparse leave out, before anything in it is acted upon."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from padim_bottle.errors import UserError

# Whose classes a config may name: this package's, anomalib's, and of what anomalib's own configs name.
PACKAGES = ("padim_bottle", "anomalib", "lightning", "torchvision")

# Far more than any config has; aliases of aliases grow without bound.
_MOST_VALUES = 10_000


def check_config(path: Path) -> None:
    """Refuse a config that is no YAML mapping, holds a key twice, or names a class from elsewhere.

    Raises:
        UserError: what is wrong with it, and in which line.
    """
    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8-sig"))
        root = loader.get_single_node()
        if not isinstance(root, yaml.MappingNode):
            raise UserError(f"{path}: it holds no settings ('key: value').")
        if _count_values(root, {}) > _MOST_VALUES:
            raise UserError(f"{path}: its aliases (*name) stand for more than {_MOST_VALUES} values.")
        _check_keys(root, path, set())
        check_class_paths(loader.construct_document(root), path)
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: it is no text in UTF-8 (byte {error.start}).") from error
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise UserError(f"{path}: {line}{' '.join(str(error.problem or error.context).split())}.") from error
    except yaml.YAMLError as error:
        raise UserError(f"{path}: {' '.join(str(error).split())}") from error
    except RecursionError:
        raise UserError(f"{path}: it is nested too deeply, or an alias (*name) contains itself.") from None


def check_class_paths(value: Any, path: Path) -> None:
    """Refuse a ``class_path`` of another package than ``PACKAGES``: to import a module is to run it.

    Args:
        value: what a config holds; mappings and lists are searched.
        path: the config, for the message.

    Raises:
        UserError: it names the class.
    """
    if isinstance(value, Mapping):
        named = value.get("class_path")
        if isinstance(named, str) and "." in named and named.split(".")[0] not in PACKAGES:
            raise UserError(f"{path}: class_path: {named} is refused: a config may name classes of {_LISTED} only.")
        value = value.values()
    elif not isinstance(value, list | tuple):
        return
    for part in value:
        check_class_paths(part, path)


_LISTED = ", ".join(PACKAGES[:-1]) + f" and {PACKAGES[-1]}"


def _check_keys(node: yaml.Node, path: Path, seen: set[int]) -> None:
    if id(node) in seen or isinstance(node, yaml.ScalarNode):
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for part in node.value:
            _check_keys(part, path, seen)
        return
    lines: dict[str, int] = {}
    for key, value in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode) or key.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge"):
            raise UserError(f"{path}: line {line}: '{key.value}' is no name of a setting.")
        if key.value in lines:
            raise UserError(f"{path}: line {line}: '{key.value}' stands in line {lines[key.value]} already.")
        lines[key.value] = line
        _check_keys(value, path, seen)


def _count_values(node: yaml.Node, counts: dict[int, int]) -> int:
    """Count the values below a node as often as aliases repeat them."""
    if id(node) not in counts:
        parts = [] if isinstance(node, yaml.ScalarNode) else node.value
        flat = [part for pair in parts for part in (pair if isinstance(pair, tuple) else (pair,))]
        counts[id(node)] = 1 + sum(_count_values(part, counts) for part in flat)
    return counts[id(node)]
