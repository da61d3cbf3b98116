"""The folder of a finished run: written under a hidden name, named when it is whole, never half there."""

import json
import logging
import os
import shutil
import socket
from pathlib import Path

logger = logging.getLogger(__name__)

# A run with fewer files than these is not finished.
RUN_FILES = ("config.yaml", "metrics.json", "predictions.csv", "model.ckpt")


def publish(partial: Path, folder: Path) -> None:
    """Give a whole run's hidden folder its name; keep a finished run of another configuration under another name.

    Args:
        partial: the hidden folder, on the same file system.
        folder: ``<root>/<experiment>/seed_<n>``.
    """
    if folder.exists():
        if _same_configuration(folder, partial):
            old = folder.with_name(f".{folder.name}.replaced-{os.getpid()}")
        else:
            taken = len(list(folder.parent.glob(f"{folder.name}.previous_*")))
            old = folder.with_name(f"{folder.name}.previous_{taken + 1}")
            logger.warning("%s held a run of another configuration: it is kept as %s.", folder, old)
        folder.rename(old)
        partial.rename(folder)
        if old.name.startswith("."):
            shutil.rmtree(old, ignore_errors=True)
    else:
        partial.rename(folder)
    failure_record(folder).unlink(missing_ok=True)


def partial_folder(folder: Path) -> Path:
    """Return the hidden name under which this process writes a run's folder."""
    return folder.with_name(f".{folder.name}.partial-{socket.gethostname()}-{os.getpid()}")


def failure_record(folder: Path) -> Path:
    """Return the path where a sweep records that the run of this folder failed."""
    return folder.with_name(f"{folder.name}.failed.json")


def remove_abandoned(folder: Path) -> None:
    """Remove hidden folders that killed runs of the same name left on this machine."""
    prefix = f".{folder.name}.partial-{socket.gethostname()}-"
    for partial in folder.parent.glob(f"{prefix}*"):
        process = partial.name.removeprefix(prefix)
        if process.isdigit() and not _is_running(int(process)):
            shutil.rmtree(partial, ignore_errors=True)


def _same_configuration(folder: Path, other: Path) -> bool:
    try:
        one, two = (json.loads((run / "metrics.json").read_text()) for run in (folder, other))
    except (OSError, ValueError):
        return False
    return one.get("config_sha256") == two["config_sha256"]


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True
