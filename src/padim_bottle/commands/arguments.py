"""How all commands read their arguments."""

import argparse
from pathlib import Path
from typing import Any


def new_parser(program: str, description: str) -> argparse.ArgumentParser:
    """Return a command's parser: its help text as it is written, and no abbreviated options."""
    return argparse.ArgumentParser(
        prog=program,
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


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


def add_photo_options(parser: argparse.ArgumentParser, purpose: str) -> None:
    """Add ``--photos`` and ``--group``."""
    parser.add_argument("--photos", type=Path, metavar="FOLDER", help=f"{purpose} on these photos of good parts")
    parser.add_argument(
        "--group", help="which photos show one part: a regular expression with one group on the file name, or "
        "parent-folder",
    )  # fmt: skip


def photo_settings(photos: Path, group: str | None, test: Path | None = None) -> dict[str, Any]:
    """Return the keys of a config, with their values, that replace its data by a folder of photos."""
    arguments: dict[str, Any] = {"folder": str(photos)}
    if test is not None:
        arguments["test"] = str(test)
    if group == "parent-folder":
        arguments["subfolders"] = True
    data = {"class_path": "padim_bottle.Photos", "init_args": arguments}
    return {"data": data} if group is None else {"data": data, "model.init_args.group": group}
