"""Types of arguments, and what several commands do with theirs."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any


def positive(text: str) -> int:
    """Return an argument that is a whole number of 1 or more.

    Raises:
        argparse.ArgumentTypeError: it is less.
    """
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than 1")
    return number


def rate(text: str) -> float:
    """Return an argument that is a share between 0 and 1.

    Raises:
        argparse.ArgumentTypeError: it is not.
    """
    number = float(text)
    if not 0 < number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return number


Positive = Annotated[int, positive]
Rate = Annotated[float, rate]


class Override(str):
    """A word that a command hands on as it is: part of an argument in the spelling of ``anomalib train``."""


def photo_settings(
    photos: Sequence[Path],
    group: str | None,
    test: Path | None = None,
    keep_rejecting: Path | None = None,
    region: Path | None = None,
) -> dict[str, Any]:
    """Return the keys of a config, with their values, that replace its data by folders of photos."""
    arguments: dict[str, Any] = {"folder": str(photos[0]) if len(photos) == 1 else [*map(str, photos)]}
    for name, folder in (("test", test), ("keep_rejecting", keep_rejecting)):
        if folder is not None:
            arguments[name] = str(folder)
    if group == "parent-folder":
        arguments["subfolders"] = True
    data = {"class_path": "padim_bottle.Photos", "init_args": arguments}
    model = {"group": group, "region": None if region is None else str(region)}
    return {"data": data, **{f"model.init_args.{name}": value for name, value in model.items() if value is not None}}
