"""The callback that draws a run's pictures, writes its report and prints its summary."""

from concurrent.futures import Future, ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

from lightning import LightningModule

from padim_bottle.evaluation.predictions import Thresholds
from padim_bottle.evaluation.regions import called_pixels
from padim_bottle.heat import HeatmapScale, write_png
from padim_bottle.report.panels import draw_panels, lay_out, write_strip
from padim_bottle.report.screen import print_summary
from padim_bottle.runs.folder import picture_path, strip_path
from padim_bottle.runs.listener import JudgedImage, RunListener
from padim_bottle.runs.record import area_of
from padim_bottle.runs.run import Run
from padim_bottle.stages import cores

_PAGE = "padim_bottle.report.run_report"


class Report(RunListener):
    """Pictures, figures, ``report.html`` and the summary on the screen, for the run that ``ResultsWriter`` writes.

    Pictures of one run share one colour scale and are drawn in threads beside the network.

    Args:
        images: draw a picture of every test image.
        report: draw figures and write ``report.html``.
    """

    def __init__(self, images: bool = True, report: bool = True) -> None:
        self.wants_images = images
        self.report = report
        # Of the run at work: threads, what they do, a Path, Thresholds, an area or None, a HeatmapScale or None.
        self._pool: ThreadPoolExecutor | None = None
        self._drawings: list[Future[None]] = []
        self._folder: Any = None
        self._thresholds: Any = None
        self._area: Any = None
        self._scale: Any = None
        self._taken: set[Path] = set()

    def on_run_start(self, folder: Path, thresholds: Thresholds, pl_module: LightningModule) -> None:
        """Start the threads that draw."""
        self._folder, self._thresholds, self._area = folder, thresholds, area_of(pl_module)
        self._scale = _calibrated_scale(thresholds, pl_module)
        self._taken, self._drawings = set(), []
        self._pool = ThreadPoolExecutor(max_workers=min(4, cores()), thread_name_prefix="draw")
        if self.report:
            # Loaded while the network computes, as it takes half a second.
            self._pool.submit(import_module, _PAGE)

    def on_run_image(self, judged: JudgedImage) -> None:
        """Draw an image beside the network's work."""
        assert self._pool is not None
        if self._scale is None:  # of a model without a threshold: that of the first image
            self._scale = HeatmapScale(float(judged.anomaly_map.min()), float(judged.anomaly_map.max()))
        target = picture_path(judged.name, self._taken)
        self._drawings.append(self._pool.submit(self._draw, target, judged))

    def on_run_images_end(self) -> None:
        """Wait for the drawings, and raise what one of them raised."""
        assert self._pool is not None
        for drawing in self._drawings:
            drawing.result()
        self._pool.shutdown()

    def on_run_written(self, folder: Path) -> None:
        """Draw the figures and write the page."""
        if self.report:
            import_module(_PAGE).write_report(folder)

    def on_run_published(self, run: Run) -> None:
        """Print the figures and the paths to look at."""
        print_summary(run)

    def on_run_failed(self) -> None:
        """Drop what is not drawn yet."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _draw(self, target: Path, judged: JudgedImage) -> None:
        caption = f"score {judged.score:.2f}"
        anomalous = self._thresholds.anomalous(judged.score)
        if anomalous is not None:
            verdict = "anomalous" if anomalous else "good"
            caption = f"{verdict}: {caption}, threshold {self._thresholds.image:.2f}"
        if judged.p_value is not None:
            caption += f", p = {judged.p_value:.3f}"
        called = called_pixels(judged.anomaly_map, anomalous, self._thresholds.pixel)
        panels = draw_panels(judged.picture, judged.anomaly_map, judged.mask, called, self._scale, self._area)
        write_png(self._folder / target, lay_out(panels, self._scale, caption))
        if self.report:
            write_strip(self._folder / strip_path(target), panels)


def _calibrated_scale(thresholds: Thresholds, pl_module: LightningModule) -> HeatmapScale | None:
    if thresholds.pixel is None:
        return None
    spread = getattr(pl_module.post_processor, "pixel_scale", None)
    typical = thresholds.pixel / 2 if spread is None else thresholds.pixel - float(spread)
    return HeatmapScale.from_threshold(thresholds.pixel, typical)
