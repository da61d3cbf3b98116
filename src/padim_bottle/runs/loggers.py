"""A finished run for Lightning's loggers, which the YAML names under ``trainer.logger``."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch.loggers
import numpy as np
import yaml
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from PIL import Image


class MLFlowLogger(lightning.pytorch.loggers.MLFlowLogger):
    """Lightning's class, which works with a database or a server as well.

    Lightning's CLI puts a copy of the config into the first logger's folder, and fails where that has none; its own
    class has one only for MLflow's file store, which MLflow 3 refuses by default.

    Args:
        *args: as in Lightning.
        save_dir: the folder to name.
        **kwargs: as in Lightning.
    """

    def __init__(self, *args: Any, save_dir: str = "./mlruns", **kwargs: Any) -> None:
        super().__init__(*args, save_dir=save_dir, **kwargs)
        self._folder = save_dir

    @property
    def save_dir(self) -> str:
        """Folder on this machine."""
        return super().save_dir or self._folder


def log_results(loggers: Sequence[Logger], metrics: Mapping[str, Any], config_text: str, folder: Path) -> None:
    """Give a run's metrics, configuration and figures to each logger.

    TensorBoard gets the figures as images, CSV as files in its own folder, MLflow every file of the run but the
    checkpoint. Any other logger gets metrics and configuration.

    Args:
        loggers: ``trainer.loggers``, in Lightning's or anomalib's classes.
        metrics: numbers, nested: ``{"per_defect": {"broken_large": {"recall": 1.0}}}`` becomes
            ``per_defect/broken_large/recall``. What is no number is left out.
        config_text: the configuration as resolved, YAML.
        folder: the finished run; ``figures`` need not be there.
    """
    if not loggers:
        return
    numbers = dict(_numbers(metrics))
    config = yaml.safe_load(config_text) or {}
    figures = sorted((folder / "figures").glob("*.png"))
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            # Together, so that the table of hyperparameters has the metrics as columns.
            logger.log_hyperparams(config, numbers)
            logger.experiment.add_text("config", f"```yaml\n{config_text}```")
            for figure in figures:
                pixels = np.asarray(Image.open(figure).convert("RGB"))
                logger.experiment.add_image(f"figures/{figure.stem}", pixels, dataformats="HWC")
        else:
            logger.log_hyperparams(config)
            logger.log_metrics(numbers)
        if isinstance(logger, lightning.pytorch.loggers.MLFlowLogger):
            for path in sorted(folder.iterdir()):
                if path.is_dir():
                    logger.experiment.log_artifacts(logger.run_id, str(path), path.name)
                elif path.suffix != ".ckpt":
                    logger.experiment.log_artifact(logger.run_id, str(path))
        logger.save()
        if isinstance(logger, CSVLogger):
            for figure in figures:
                target = Path(logger.log_dir, "figures", figure.name)
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(figure, target)


def _numbers(metrics: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            yield from _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{name}", float(value)
