"""The folder of a finished run: written under a hidden name, named when it is whole, never half there.

An earlier run of the same name steps aside as ``seed_<n>.previous_<k>``, and is deleted once the new one is in its
place, provided that both say the same. So nothing that differs is ever lost, and a process can die at any step.
"""

import contextlib
import itertools
import json
import logging
import os
import shutil
import socket
from pathlib import Path
from typing import Any

from padim_bottle.errors import UserError, in_a_line

logger = logging.getLogger(__name__)

# A run with fewer files than these is not finished.
RUN_FILES = ("config.yaml", "metrics.json", "predictions.csv", "model.ckpt")

# Two runs say the same where these are equal.
_SAYING = ("config.yaml", "predictions.csv")

_ATTEMPTS = 100


def publish(partial: Path, folder: Path) -> None:
    """Give a whole run's hidden folder its name; keep a finished run that says something else under another name.

    Other processes may publish to the same folder at the same time: of runs that say the same the last one stays.

    Args:
        partial: the hidden folder, on the same file system.
        folder: ``<root>/<experiment>/seed_<n>``.

    Raises:
        OSError: it cannot be renamed.
    """
    aside = None
    for attempt in itertools.count(1):
        try:
            if folder.exists() and partial.is_dir():
                names = (folder.with_name(f"{folder.name}.previous_{number}") for number in itertools.count(1))
                aside = folder.rename(next(name for name in names if not name.exists()))
            partial.rename(folder)
            break
        except OSError:
            # Another process moved or took the folder since we looked: look again.
            if attempt == _ATTEMPTS or not partial.is_dir():
                raise
    for previous in folder.parent.glob(f"{folder.name}.previous_*"):
        with contextlib.suppress(OSError):  # another process removes it, or puts its own run in our place
            if all((previous / name).read_bytes() == (folder / name).read_bytes() for name in _SAYING):
                # Hidden first, so that it is never half there.
                shutil.rmtree(previous.rename(partial), ignore_errors=True)
    if aside is not None and aside.exists():
        logger.warning("%s held a run that says something else: it is kept as %s.", folder, aside)
    failure_record(folder).unlink(missing_ok=True)


def partial_folder(folder: Path) -> Path:
    """Return the hidden name under which this process writes a run's folder."""
    return folder.with_name(f"{_hidden_prefix(folder)}{os.getpid()}")


def remove_abandoned(folder: Path) -> None:
    """Clear away the hidden folders of killed processes of this machine that wrote a run of the same name."""
    prefix = _hidden_prefix(folder)
    for hidden in folder.parent.glob(f"{prefix}*"):
        process = hidden.name.removeprefix(prefix)
        if process.isdigit() and not _is_running(int(process)):
            shutil.rmtree(hidden, ignore_errors=True)


def failure_record(folder: Path) -> Path:
    """Return the path where a sweep records that the run of this folder failed."""
    return folder.with_name(f"{folder.name}.failed.json")


def picture_path(image: Path, taken: set[Path]) -> Path:
    """Return where a run keeps its picture of a test image, relative to the run's folder.

    Args:
        image: the image, in the folder of its defect type.
        taken: what earlier images were given; this one's is added.
    """
    folder = Path("images", image.parent.name)
    # There may be 'a.jpg' beside 'a.png', and photos of several parts may have one name.
    names = itertools.chain([image.stem, image.name], (f"{image.stem}_{number}" for number in itertools.count(2)))
    path = next(path for name in names if (path := folder / f"{name}.png") not in taken)
    taken.add(path)
    return path


def strip_path(picture: Path) -> Path:
    """Return where a run keeps the panels of a picture, as a strip, for its figures and its report."""
    return Path("figures", "panels", picture.parent.name, f"{picture.stem}.jpg")


def read_metrics(folder: Path) -> dict[str, Any]:
    """Return what a run's ``metrics.json`` holds.

    Raises:
        UserError: there is none, or it is broken.
    """
    try:
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{folder}: there is no finished run: metrics.json is missing.") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: metrics.json is broken: {in_a_line(error)}.") from error
    if not isinstance(metrics, dict):
        raise UserError(f"{folder}: metrics.json is broken: it holds no table.")
    return metrics


def _hidden_prefix(folder: Path) -> str:
    return f".{folder.name}.partial-{socket.gethostname()}-"


def _is_running(process: int) -> bool:
    if os.name == "nt":
        return True  # os.kill would end it there
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
