"""What ``ResultsWriter`` tells others of a run while it is written."""

import logging
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import numpy as np
from lightning import LightningModule
from lightning.pytorch import Callback

from padim_bottle.evaluation.predictions import Thresholds
from padim_bottle.runs.run import Run

logger = logging.getLogger(__name__)


class JudgedImage(NamedTuple):
    """An image, and what the model says of it.

    Attributes:
        name: defect type, or ``train``, and file name.
        picture: (H, W, 3) bytes.
        anomaly_map: (H, W) raw pixel scores.
        mask: (H, W) bool ground truth, or ``None`` where there is none.
        score: raw image score.
        p_value: the score's, where the model is calibrated.
    """

    name: Path
    picture: np.ndarray
    anomaly_map: np.ndarray
    mask: np.ndarray | None
    score: float
    p_value: float | None


class RunListener(Callback):
    """A callback that adds to a run's folder before it gets its name, such as pictures and a page.

    ``ResultsWriter`` finds those among the trainer's callbacks and calls these hooks, besides Lightning's own.
    """

    wants_images = True
    """Whether ``on_run_image`` is to be called."""

    def on_run_start(self, folder: Path, thresholds: Thresholds, pl_module: LightningModule) -> None:
        """Begin: the model is trained, and nothing was tested yet.

        Args:
            folder: the hidden folder of the run.
            thresholds: the run's.
            pl_module: the model.
        """

    def on_run_image(self, judged: JudgedImage) -> None:
        """Take an image that was judged; the loop goes on when this returns."""

    def on_run_images_end(self) -> None:
        """Finish what was begun for the images."""

    def on_run_written(self, folder: Path) -> None:
        """Add to the hidden folder, which holds all of the writer's own files; an error is a warning, and no more."""

    def on_run_published(self, run: Run) -> None:
        """Say what came out, now that the folder has its name."""

    def on_run_failed(self) -> None:
        """Stop: there will be no run."""


def default_listeners(images: bool, report: bool) -> list[RunListener]:
    """Return ``padim_bottle.Report``, which is no part of the core; nothing, with a warning, where it is not there."""
    try:
        return [import_module("padim_bottle").Report(images=images, report=report)]
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("padim_bottle.report"):
            raise
        logger.warning("padim_bottle.report is not installed: this run has no pictures, no report and no summary.")
        return []
