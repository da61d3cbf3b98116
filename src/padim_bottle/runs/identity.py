"""Which records of a model are of the same settings, even if its class had other arguments at the time."""

import hashlib
import importlib
import inspect
import json
import sys
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

# A record may come from a stranger: no other package is imported because a record names it.
_TRUSTED = ("anomalib", "padim_bottle")


def settings_digests(models: Sequence[dict[str, Any]]) -> list[str]:
    """Return a SHA-256 of class and arguments but the seed of each model, equal for equal settings.

    An argument at its default is no difference, so a record from before the class had it is of the same settings.

    Args:
        models: what each ``metrics.json`` says of the model.
    """
    digests = [_digest(model) for model in models]
    if len(set(digests)) > 1:
        # Only now, as it takes seconds: the classes are loaded for their defaults.
        digests = [_digest(without_defaults(model)) for model in models]
    return digests


def without_defaults(model: dict[str, Any]) -> dict[str, Any]:
    """Return a model's record without the arguments that have the defaults of its class, as far as that is known."""
    named = _find_class(model["class"])
    if named is None:
        return model
    defaults = {name: parameter.default for name, parameter in inspect.signature(named).parameters.items()}
    kept = {name: value for name, value in model.items() if name not in defaults or value != _plain(defaults[name])}
    return {**kept, "class": public_name(named)}


def public_name(named: type) -> str:
    """Return a class's path as a YAML would name it: the shortest one, whichever module the class is written in."""
    packages = accumulate(named.__module__.split("."), "{}.{}".format)
    public = (package for package in packages if getattr(sys.modules[package], named.__qualname__, None) is named)
    return f"{next(public, named.__module__)}.{named.__qualname__}"


def _digest(model: dict[str, Any]) -> str:
    settings = {name: value for name, value in model.items() if name != "seed"}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _find_class(path: str) -> type | None:
    """Return the class of a path, also where the module that the path names has become another one."""
    *packages, name = path.split(".")
    for depth in range(len(packages), 0, -1):
        module = ".".join(packages[:depth])
        try:
            if module not in sys.modules and packages[0] not in _TRUSTED:
                continue
            found = getattr(importlib.import_module(module), name, None)
        except ImportError:
            continue
        if inspect.isclass(found):
            return found
    return None


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
