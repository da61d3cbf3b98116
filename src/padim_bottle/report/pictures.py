"""A run's pictures, drawn in threads beside the network."""

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from lightning import LightningModule

from padim_bottle.evaluation.predictions import Thresholds
from padim_bottle.evaluation.regions import called_pixels
from padim_bottle.heat import HeatmapScale, write_png
from padim_bottle.report.panels import draw_panels, lay_out, write_strip
from padim_bottle.runs.folder import picture_path, strip_path
from padim_bottle.runs.listener import JudgedImage
from padim_bottle.runs.record import area_of


class Pictures:
    """Draws images, anomaly maps, ground truths and predictions, all on one colour scale.

    Args:
        folder: the run's, while it is written.
        thresholds: the run's.
        pl_module: the model, whose post-processor may know what a typical pixel is.
        strips: keep the panels for the report as well.
    """

    def __init__(self, folder: Path, thresholds: Thresholds, pl_module: LightningModule, *, strips: bool) -> None:
        self._folder = folder
        self._thresholds = thresholds
        self._strips = strips
        self._area = area_of(pl_module)
        self._scale = _calibrated_scale(thresholds, pl_module)
        self._taken: set[Path] = set()
        self._drawings: list[Future[None]] = []
        self._pool = ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1), thread_name_prefix="draw")

    def beside(self, work: Callable[..., Any], *arguments: Any) -> None:
        """Do other work in the threads, before what is added from now on."""
        self._pool.submit(work, *arguments)

    def add(self, judged: JudgedImage) -> None:
        """Draw an image beside the caller's work."""
        if self._scale is None:  # of a model without a threshold: that of the first image
            self._scale = HeatmapScale(float(judged.anomaly_map.min()), float(judged.anomaly_map.max()))
        target = picture_path(judged.name, self._taken)
        self._drawings.append(self._pool.submit(self._draw, target, judged))

    def finish(self) -> None:
        """Wait for all drawings, and raise what one of them raised."""
        for drawing in self._drawings:
            drawing.result()
        self._pool.shutdown()

    def cancel(self) -> None:
        """Drop what is not drawn yet."""
        self._pool.shutdown(cancel_futures=True)

    def _draw(self, target: Path, judged: JudgedImage) -> None:
        assert self._scale is not None
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
        if self._strips:
            write_strip(self._folder / strip_path(target), panels)


def _calibrated_scale(thresholds: Thresholds, pl_module: LightningModule) -> HeatmapScale | None:
    if thresholds.pixel is None:
        return None
    spread = getattr(pl_module.post_processor, "pixel_scale", None)
    typical = thresholds.pixel / 2 if spread is None else thresholds.pixel - float(spread)
    return HeatmapScale.from_threshold(thresholds.pixel, typical)
