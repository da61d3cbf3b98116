"""The folder of a finished run: written under a hidden name, named when it is whole, never half there.

An earlier run of the same name steps aside as ``seed_<n>.previous_<k>``, and is deleted once the new one is in its
place, provided that both say the same; what somebody put into it moves over. So nothing that differs is ever lost, and
a process can die at any step: a whole run that did not get its name gets it from whoever writes there next.

Processes of one machine, containers included, are told apart by a lock in each hidden folder. On a network's folder
that holds as far as its locks do (NFS: version 4, or a running lock manager); hidden names differ in any case, so that
two writers never share one.
"""

import contextlib
import itertools
import json
import logging
import shutil
from pathlib import Path
from typing import Any

from padim_bottle.errors import UserError, in_a_line
from padim_bottle.files import abandoned_folders, locked_folder

logger = logging.getLogger(__name__)

# A run with fewer files than these is not finished.
RUN_FILES = ("config.yaml", "metrics.json", "predictions.csv", "model.ckpt")

# A whole run that holds this file may not take the place of another.
REFUSED_FILE = "refused.txt"

# What a run changes against the one before, see ``changes``.
CHANGES_FILE = "changes.json"

# Two runs say the same where these are equal.
_SAYING = ("config.yaml", "predictions.csv")

# In a hidden folder: the run that is written, and an earlier one that is about to be deleted.
_NEW, _OLD = "new", "old"

_ATTEMPTS = 100


class PartialRun:
    """A run's folder while it is written.

    Args:
        folder: ``<root>/<experiment>/seed_<n>``, its name when it is whole.

    Attributes:
        path: where to write, on the same file system.

    Raises:
        OSError: nothing can be written there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        recover(folder)
        self._hidden, self._lock = locked_folder(folder)
        self.path = self._hidden / _NEW
        self.path.mkdir()

    def publish(self) -> Path:
        """Give the run its name; keep a finished run that says something else under another name.

        A run that holds ``REFUSED_FILE`` takes no other's place: it is ``<folder>.refused``, whatever was there.

        Returns:
            Where the run lies.

        Raises:
            UserError: it lacks a file, or cannot get its name; then the message says where it is kept.
        """
        lacking = [name for name in RUN_FILES if not (self.path / name).is_file()]
        if lacking:
            raise UserError(f"The run for {self.folder} is not whole: it has no {' and no '.join(lacking)}.")
        if (self.path / REFUSED_FILE).is_file():
            refused = self.folder.with_name(f"{self.folder.name}.refused")
            shutil.rmtree(refused, ignore_errors=True)
            self.path.rename(refused)
            self.discard()
            return refused
        try:
            _publish(self._hidden, self.folder)
        except OSError as error:
            kept = self.path
            with contextlib.suppress(OSError):
                kept = kept.rename(_free_name(self.folder))
            self._lock.release()
            raise UserError(
                f"{self.folder} could not be put in place ({in_a_line(error)}). The whole run is kept as {kept}."
            ) from error
        self.discard()
        return self.folder

    def discard(self) -> None:
        """Delete what was not published, unless it is whole."""
        self._lock.release()
        if not _is_whole(self.path):
            shutil.rmtree(self._hidden, ignore_errors=True)
            with contextlib.suppress(OSError):
                self.folder.parent.rmdir()


def recover(folder: Path) -> None:
    """Publish the whole runs of this name that killed processes left in hidden folders; delete the others."""
    for hidden in abandoned_folders(folder):
        if _is_whole(hidden / _NEW):
            with contextlib.suppress(OSError):
                _publish(hidden, folder)
        if not _is_whole(hidden / _NEW):
            shutil.rmtree(hidden, ignore_errors=True)


def _publish(hidden: Path, folder: Path) -> None:
    """Publish the whole run in a hidden folder.

    Other processes may publish to the same folder at the same time: of runs that say the same the last one stays.
    """
    partial, aside = hidden / _NEW, None
    for attempt in itertools.count(1):
        try:
            if folder.exists() and partial.is_dir():
                aside = folder.rename(_free_name(folder))
            partial.rename(folder)
            break
        except OSError:
            # Another process moved or took the folder since we looked: look again.
            if attempt == _ATTEMPTS or not partial.is_dir():
                if aside is not None and not folder.exists():
                    aside.rename(folder)
                raise
    for previous in folder.parent.glob(f"{folder.name}.previous_*"):
        with contextlib.suppress(OSError):  # another process removes it, or puts its own run in our place
            if all((previous / name).read_bytes() == (folder / name).read_bytes() for name in _SAYING):
                _move_extras(previous, folder)
                # Hidden first, so that it is never half there.
                shutil.rmtree(previous.rename(hidden / _OLD), ignore_errors=True)
    if aside is not None and aside.exists():
        logger.warning("%s held a run that says something else: it is kept as %s.", folder, aside)
    failure_record(folder).unlink(missing_ok=True)


def _move_extras(previous: Path, folder: Path) -> None:
    """Move what is in an earlier run's folder and not in the new one's: exported models, notes."""
    for path in sorted(previous.rglob("*")):
        target = folder / path.relative_to(previous)
        if not path.is_dir() and not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)


def _free_name(folder: Path) -> Path:
    names = (folder.with_name(f"{folder.name}.previous_{number}") for number in itertools.count(1))
    return next(name for name in names if not name.exists())


def _is_whole(partial: Path) -> bool:
    """Tell a run that may be published, also by another process."""
    return all((partial / name).is_file() for name in RUN_FILES) and not (partial / REFUSED_FILE).is_file()


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
