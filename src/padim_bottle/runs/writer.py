"""The Lightning callback that turns a test run into a folder of results."""

import contextlib
import json
import logging
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from lightning import LightningModule, Trainer

from padim_bottle.data.images import read_size
from padim_bottle.data.photos import Photos
from padim_bottle.data.samples import describe, read_alike
from padim_bottle.errors import UserError, first_few
from padim_bottle.evaluation.metrics import evaluate
from padim_bottle.evaluation.predictions import Predictions, predictions_table
from padim_bottle.files import sha256, write_whole
from padim_bottle.model.area import check_aspect, read_area
from padim_bottle.runs import environment, record
from padim_bottle.runs.batches import batch_predictions, joined, judged_batch, judged_training
from padim_bottle.runs.changes import describe_changes
from padim_bottle.runs.figure_data import DATA_FILE, save_data
from padim_bottle.runs.folder import CHANGES_FILE, REFUSED_FILE, PartialRun
from padim_bottle.runs.listener import JudgedImage, RunListener, default_listeners
from padim_bottle.runs.loggers import log_results
from padim_bottle.runs.phases import TimedPhases
from padim_bottle.runs.run import Run
from padim_bottle.runs.workspace import config_text, discard_workspace, take_checkpoint
from padim_bottle.stages import clock, stage

logger = logging.getLogger(__name__)

ODDEST = 15
"""Of a folder of photos, this many training photos are drawn: those that look least like the others."""


class ResultsWriter(TimedPhases):
    """Writes ``<root>/<experiment>/seed_<n>/`` once a model was trained and tested, from YAML or Python alike.

    Works with any data module of anomalib's with a table of samples. A calibrated model needs no test images: without
    them everything is written after the training.

    The folder holds ``config.yaml`` (as resolved), ``metrics.json``, ``predictions.csv``, ``model.ckpt``,
    ``figures/data.npz`` (curves of the pixels, mean and spread of the training images' maps), and of a calibrated model
    ``training_photos.csv``: the leave-one-out scores of the training images, the oddest first. It is written under a
    hidden name and renamed when it is whole. A finished run that says something else and stands in its place is kept as
    ``seed_<n>.previous_<k>``.

    Pictures, ``report.html`` and the summary on the screen are the work of the ``RunListener`` among the trainer's
    callbacks. Without one, ``padim_bottle.Report`` is asked.

    It reads raw scores: Lightning calls it before the model's own post-processor normalises them.

    Args:
        experiment: name of the experiment, the folder's name.
        root: folder of all results.
        images: as in ``padim_bottle.Report``: draw a picture of every test image.
        report: likewise: draw figures and write ``report.html``. Should that fail, a warning says so and the rest is
            there.

    Attributes:
        quiet: print no summary; a sweep sets it.
        previous: folder of the run that this one is compared with, see ``changes``; ``None`` for the one whose place a
            run of plain photos takes.
        refused: why the run just finished did not take its place but is kept beside it; ``None`` where it did.
        features_from_seed: a sweep took the backbone's features from its run of this seed, so the run's times and
            memory are not those of a run on its own; recorded in ``metrics.json``.
    """

    def __init__(self, experiment: str, root: str | Path = "results", images: bool = True, report: bool = True) -> None:
        if not re.fullmatch(r"[\w.][\w. +=,-]*", experiment) or experiment.startswith("."):
            raise UserError(
                f"experiment: '{experiment}' cannot name a folder; use letters, digits, '_', '-' and '.', and do not "
                "begin with '.'."
            )
        super().__init__()
        self.experiment = experiment
        self.root = Path(root)
        self.images = images
        self.report = report
        self.quiet = False
        self.previous: Path | None = None
        self.refused: str | None = None
        self.features_from_seed: int | None = None
        # Of the run at work or just finished, None before: a Path, what metrics.json has, a DataDescription, a
        # PartialRun and its hidden Path.
        self.folder: Any = None
        self.metrics: Any = None
        self._data: Any = None
        self._writing: Any = None
        self._partial: Any = None
        self._listeners: list[RunListener] = []

    # --- Lightning's hooks, in the order in which they are called ---

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Describe the data and make the hidden folder before any work is done, so that what cannot be fails first."""
        pl_module.photo_bits = read_alike(trainer.datamodule)
        if self._partial is not None:  # the test that follows the training
            return
        if stage == "test" and self._data is not None and not self._data.defect_types:
            return  # all was written after the training
        self._data = describe(trainer.datamodule)
        if (region := getattr(pl_module, "region", None)) is not None and stage == "fit":
            photo = trainer.datamodule.train_data.samples["image_path"].iloc[0]
            check_aspect(read_area(region), read_size(photo), region)
        listeners = [callback for callback in trainer.callbacks if isinstance(callback, RunListener)]
        self._listeners = listeners or default_listeners(self.images, self.report)
        self.metrics, self.refused = None, None
        self.start_clock()
        if self.previous is not None:
            Run.read(self.previous)  # before the work: whether it can be compared
        environment.start_measuring(trainer.strategy.root_device)
        seed = record.run_seed(pl_module)
        self.folder = self.root / self.experiment / ("unseeded" if seed is None else f"seed_{seed}")
        try:
            self._writing = PartialRun(self.folder)
        except OSError as error:
            raise UserError(f"Cannot write results to {self.folder}: {error}.") from error
        self._partial = self._writing.path

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse to train a model that needs test images where there are none."""
        if not self._data.defect_types and getattr(pl_module.post_processor, "calibration_scores", None) is None:
            raise UserError(
                f"There are no test images of '{self._data.category}', and this model has no threshold without them: "
                "add some, or use padim_bottle.Padim with calibration: true."
            )

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write everything where there is nothing to test on: Lightning passes over such a test."""
        if not self._data.defect_types:
            self._begin(trainer, pl_module)
            self._finish(trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Get ready to collect predictions and to draw them beside the test loop."""
        super().on_test_start(trainer, pl_module)
        self._begin(trainer, pl_module)

    def _begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._batches: list[Predictions] = []
        self._thresholds = record.run_thresholds(pl_module, trainer.datamodule)
        for listener in self._listeners:
            listener.on_run_start(self._partial, self._thresholds, pl_module)

    def on_test_batch_end(self, *args: Any) -> None:
        """Collect a batch's raw predictions and hand them on."""
        _trainer, pl_module, outputs, *_ = args
        self._take(pl_module, outputs)
        super().on_test_batch_end(*args)

    def _take(self, pl_module: LightningModule, outputs: Any) -> None:
        if outputs.anomaly_map is None:
            raise UserError(f"{type(pl_module).__name__} gives no anomaly maps, which the results are made from.")
        predictions = batch_predictions(outputs, self._data, record.area_of(pl_module))
        self._batches.append(predictions)
        with stage("draw"):
            self._show(judged_batch(outputs, predictions, record.run_p_values(pl_module, predictions.scores)))

    def _show(self, images: Iterable[JudgedImage]) -> None:
        """Hand images to the listeners that want some; where none does, they are not even made."""
        watching = [listener for listener in self._listeners if listener.wants_images]
        for judged in images if watching else ():
            for listener in watching:
                listener.on_run_image(judged)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate, write everything, and give the folder its name."""
        super().on_test_end(trainer, pl_module)
        self._finish(trainer, pl_module)

    def _finish(self, trainer: Trainer, pl_module: LightningModule) -> None:
        with stage("draw"):
            self._review(trainer, pl_module)
            for listener in self._listeners:
                listener.on_run_images_end()
        with stage("evaluate"):
            predictions = joined(self._batches)
            self._batches = []  # they would take as much memory again
            metrics = evaluate(predictions, self._thresholds)

        table = predictions_table(predictions, self._thresholds, record.run_p_values(pl_module, predictions.scores))
        table.to_csv(self._partial / "predictions.csv", index=False)
        self._refuse(trainer.datamodule, table)
        config = config_text(trainer)
        (self._partial / "config.yaml").write_text(config)
        take_checkpoint(trainer, self._partial / "model.ckpt")
        self.metrics = {**self._header(trainer, pl_module), **metrics, **self._footer(pl_module)}
        self._write_metrics()
        clock.begin("report")
        with self._spared("The data of the figures"):
            scored = (getattr(pl_module.model, name, None) for name in ("scored_mean", "scored_std"))
            arrays = (np.empty(0) if values is None else values.detach().float().cpu().numpy() for values in scored)
            save_data(self._partial / DATA_FILE, predictions, self._thresholds, *arrays)
        with self._spared("The comparison with the run before"):
            self._write_changes(trainer.datamodule)
        for listener in self._listeners:
            with self._spared(f"What {type(listener).__name__} adds"):
                listener.on_run_written(self._partial)
        clock.end("total")
        self._write_metrics()
        self.folder = self._writing.publish()
        self._writing = self._partial = None
        discard_workspace(trainer)
        log_results(trainer.loggers, {**metrics, "seconds": self.metrics["seconds"]}, config, self.folder)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Print the summary, below the finished progress bar."""
        if stage == "test" and self.metrics is not None and not self.quiet:
            if trainer.progress_bar_callback is not None:
                trainer.progress_bar_callback.teardown(trainer, pl_module, stage)
            for listener in self._listeners:
                listener.on_run_published(Run(self.folder, self.metrics))
        if stage == "test":
            self._data = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave no half-written result behind."""
        for listener in self._listeners:
            listener.on_run_failed()
        if self._writing is not None:
            self._writing.discard()
            self._writing = self._partial = None
        if trainer.checkpoint_callback and trainer.checkpoint_callback.best_model_path:
            Path(trainer.checkpoint_callback.best_model_path).unlink(missing_ok=True)
        discard_workspace(trainer)

    # --- Parts of the result ---

    def _review(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what the calibration tells of the training photos; of a plain folder of them, draw the oddest."""
        table = record.training_table(pl_module)
        if table is None:
            return
        table.to_csv(self._partial / "training_photos.csv", index=False)
        if isinstance(trainer.datamodule, Photos):
            self._show(judged_training(table.head(ODDEST), trainer.datamodule.train_data, pl_module))

    def _header(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        data, area = self._data.as_dict(), record.area_of(pl_module)
        if area is not None:
            data["left_out"].append(f"Only the region counts, {area.mean():.1%} of the photo, in pixel metrics too.")
        return {
            "experiment": self.experiment,
            "seed": record.run_seed(pl_module),
            "data": data,
            "weights": record.describe_weights(pl_module),
            "model": record.describe_model(pl_module),
        }

    def _footer(self, pl_module: LightningModule) -> dict[str, Any]:
        return {
            "calibration": record.describe_calibration(pl_module),
            "seconds": {},  # known when all is done, and so is
            "profile": {},
            "checkpoint_bytes": (self._partial / "model.ckpt").stat().st_size,
            "features_from_seed": self.features_from_seed,
            "config_sha256": sha256(self._partial / "config.yaml"),
            **environment.describe(pl_module.device, str(self.folder)),
        }

    def _write_metrics(self) -> None:
        self.metrics |= self.times()
        # Renamed, so that a disk that is full the second time leaves what was written the first time.
        write_whole(self._partial / "metrics.json", json.dumps(self.metrics, indent=2, allow_nan=False) + "\n")

    def _refuse(self, datamodule: Any, table: pd.DataFrame) -> None:
        """Keep a model that lets a known defect pass from taking the place of the one before."""
        known = getattr(datamodule, "known_defects", ())
        passed = [row.image_path for row in table.itertuples() if row.image_path in known and not row.predicted_label]
        if passed:
            self.refused = (
                f"{len(passed)} of {len(known)} known defects would pass: {first_few(passed)}. So this run is kept as "
                f"{self.folder}.refused, and does not become {self.folder}."
            )
            write_whole(self._partial / REFUSED_FILE, self.refused + "\n")

    def _write_changes(self, datamodule: Any) -> None:
        folder = self.previous or (self.folder if isinstance(datamodule, Photos) else None)
        if folder is None or not (folder / "metrics.json").is_file():
            return
        before, after = Run.read(folder), Run.read(self._partial)
        if before.calibration and after.calibration:
            text = json.dumps(describe_changes(before, after), indent=2, allow_nan=False)
            write_whole(self._partial / CHANGES_FILE, text + "\n")

    @contextlib.contextmanager
    def _spared(self, what: str) -> Iterator[None]:
        """Go on after any error: the run's numbers are written, and are not lost for what is made from them."""
        try:
            yield
        except Exception as error:
            logger.warning(
                "%s could not be made for %s (%s: %s). Everything else of the run is there.",
                what, self.folder, type(error).__name__, error,
            )  # fmt: skip
