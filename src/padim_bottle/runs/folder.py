"""The folder of a finished run: written under a hidden name, named when it is whole, never half there.

Two renames put a run in the place of another one. A process that is killed between them leaves the earlier run whole
under a hidden name, and ``remove_abandoned``, with which every run begins, gives it its name back.
"""

import contextlib
import itertools
import json
import logging
import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

logger = logging.getLogger(__name__)

# A run with fewer files than these is not finished.
RUN_FILES = ("config.yaml", "metrics.json", "predictions.csv", "model.ckpt")

_ATTEMPTS = 100


def publish(partial: Path, folder: Path) -> None:
    """Give a whole run's hidden folder its name; keep a finished run of another configuration under another name.

    Other processes may publish to the same folder at the same time: of runs of one configuration the last one stays.

    Args:
        partial: the hidden folder, on the same file system.
        folder: ``<root>/<experiment>/seed_<n>``.
    """
    for attempt in itertools.count(1):
        old = None
        try:
            if folder.exists():
                old = folder.rename(_name_aside(partial, folder))
            partial.rename(folder)
            break
        except OSError:
            if old is not None:
                with contextlib.suppress(OSError):
                    old.rename(folder)
            # Another process moved or took the folder since we looked: look again.
            if attempt == _ATTEMPTS or not partial.is_dir():
                raise
    if old is not None and not old.name.startswith("."):
        logger.warning("%s held a run of another configuration: it is kept as %s.", folder, old)
    shutil.rmtree(_hidden(folder, "replaced"), ignore_errors=True)
    failure_record(folder).unlink(missing_ok=True)


def partial_folder(folder: Path) -> Path:
    """Return the hidden name under which this process writes a run's folder."""
    return _hidden(folder, "partial")


def failure_record(folder: Path) -> Path:
    """Return the path where a sweep records that the run of this folder failed."""
    return folder.with_name(f"{folder.name}.failed.json")


def picture_path(image: Path, taken: set[Path]) -> Path:
    """Return where a run keeps its picture of a test image, relative to the run's folder.

    Args:
        image: the image, in the folder of its defect type.
        taken: what earlier images were given; this one's is added.
    """
    path = Path("images", image.parent.name, f"{image.stem}.png")
    if path in taken:  # of 'a.png', and this is 'a.jpg'
        path = path.with_name(f"{image.name}.png")
    taken.add(path)
    return path


def remove_abandoned(folder: Path) -> None:
    """Clear away what killed runs of the same name left on this machine, and restore what they had put aside."""
    for replaced in _abandoned(folder, "replaced"):
        if not folder.exists() and all((replaced / name).is_file() for name in RUN_FILES):
            with contextlib.suppress(OSError):  # another process was quicker
                replaced.rename(folder)
        shutil.rmtree(replaced, ignore_errors=True)
    for partial in _abandoned(folder, "partial"):
        shutil.rmtree(partial, ignore_errors=True)


def _name_aside(partial: Path, folder: Path) -> Path:
    """Return the name under which the run that holds the folder makes way."""
    if _same_configuration(folder, partial):
        old = _hidden(folder, "replaced")
        shutil.rmtree(old, ignore_errors=True)  # of an earlier attempt
        return old
    names = (folder.with_name(f"{folder.name}.previous_{number}") for number in itertools.count(1))
    return next(name for name in names if not name.exists())


def _hidden(folder: Path, kind: str) -> Path:
    return folder.with_name(f".{folder.name}.{kind}-{socket.gethostname()}-{os.getpid()}")


def _abandoned(folder: Path, kind: str) -> Iterator[Path]:
    """Find the hidden folders of this kind whose processes, on this machine, have ended."""
    prefix = f".{folder.name}.{kind}-{socket.gethostname()}-"
    for hidden in sorted(folder.parent.glob(f"{prefix}*")):
        process = hidden.name.removeprefix(prefix)
        if process.isdigit() and not _is_running(int(process)):
            yield hidden


def _same_configuration(folder: Path, other: Path) -> bool:
    for _ in range(10):
        try:
            one, two = (json.loads((run / "metrics.json").read_text()) for run in (folder, other))
            return one["config_sha256"] == two["config_sha256"]
        except FileNotFoundError:  # noqa: PERF203
            time.sleep(0.01)  # another process is about to put its run there
        except (OSError, ValueError, KeyError, TypeError):
            break
    return False


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
