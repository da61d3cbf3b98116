"""The callback that draws a run's pictures, writes its report and prints its summary."""

from importlib import import_module
from pathlib import Path

from lightning import LightningModule

from padim_bottle.evaluation.predictions import Thresholds
from padim_bottle.report.pictures import Pictures
from padim_bottle.report.screen import print_summary
from padim_bottle.runs.listener import JudgedImage, RunListener
from padim_bottle.runs.run import Run

_PAGE = "padim_bottle.report.run_report"


class Report(RunListener):
    """Pictures, figures, ``report.html`` and the summary on the screen, for the run that ``ResultsWriter`` writes.

    Args:
        images: draw a picture of every test image.
        report: draw figures and write ``report.html``.
    """

    def __init__(self, images: bool = True, report: bool = True) -> None:
        self.wants_images = images
        self.report = report
        self._pictures: Pictures | None = None

    def on_run_start(self, folder: Path, thresholds: Thresholds, pl_module: LightningModule) -> None:
        """Start the threads that draw."""
        self._pictures = Pictures(folder, thresholds, pl_module, strips=self.report)
        if self.report:
            # Loaded while the network computes, as it takes half a second.
            self._pictures.beside(import_module, _PAGE)

    def on_run_image(self, judged: JudgedImage) -> None:
        """Draw an image beside the network's work."""
        assert self._pictures is not None
        self._pictures.add(judged)

    def on_run_images_end(self) -> None:
        """Wait for the drawings."""
        assert self._pictures is not None
        self._pictures.finish()

    def on_run_written(self, folder: Path) -> None:
        """Draw the figures and write the page."""
        if self.report:
            import_module(_PAGE).write_report(folder)

    def on_run_published(self, run: Run) -> None:
        """Print the figures and the paths to look at."""
        print_summary(run)

    def on_run_failed(self) -> None:
        """Drop what is not drawn yet."""
        if self._pictures is not None:
            self._pictures.cancel()
