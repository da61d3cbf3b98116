"""A finished run, read from its folder: the one reader of what ``ResultsWriter`` writes."""

import contextlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from padim_bottle.errors import UserError, in_a_line
from padim_bottle.evaluation.curves import Curve, trace_curve
from padim_bottle.evaluation.predictions import GOOD, confusion_matrix
from padim_bottle.runs.figure_data import DATA_FILE
from padim_bottle.runs.folder import CHANGES_FILE, REFUSED_FILE, picture_path, read_metrics, strip_path


@dataclass(frozen=True, eq=False)
class Run:
    """A run. Its files are read when they are first asked for, and a ``UserError`` names what is broken.

    Attributes:
        folder: the run's folder.
        metrics: what ``metrics.json`` holds.
    """

    folder: Path
    metrics: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> "Run":
        """Read a finished run.

        Raises:
            UserError: there is none in this folder, or its ``metrics.json`` is broken.
        """
        metrics = read_metrics(folder)
        with named(folder):
            metrics["thresholds"]["image"], metrics["calibration"], metrics["data"]["synthetic"], metrics["weights"]
        return cls(folder, metrics)

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """One row a test image, by ascending score; no row where there was none.

        Columns: image (its name), defect_type, label, score, p_value, predicted_label (missing without a threshold),
        covered, spilled (shares of the defect's pixels and of the others that are called anomalous), strip (path of
        its panels in the folder, or ``None``).
        """
        with named(self.folder):
            path = self.folder / "predictions.csv"
            if not path.is_file() and not self.metrics["data"]["test_images"]:
                table = pd.DataFrame(columns=["image_path", "defect_type", "label", "score", "predicted_label"])
            else:
                table = read_csv(path)
            labels = table["label"].map({True: True, False: False, "True": True, "False": False})
            scores = table["score"].astype(float)
            if labels.isna().any() or not np.isfinite(scores).all():
                raise ValueError("predictions.csv has labels that are not True or False, or scores that are not finite")
            images = [
                Path(defect, _name(path))
                for path, defect in zip(table["image_path"], table["defect_type"], strict=True)
            ]
            predictions = pd.DataFrame(
                {
                    "image": [image.name for image in images],
                    "defect_type": table["defect_type"],
                    "label": labels.astype(bool),
                    "score": scores,
                    "p_value": table.get("p_value", np.nan),
                    "predicted_label": table["predicted_label"].astype("boolean"),
                    "covered": self.arrays.get("covered", np.nan),
                    "spilled": self.arrays.get("spilled", np.nan),
                    "strip": self._strips(images),
                }
            )
        return predictions.sort_values(["score", "defect_type", "image"], ignore_index=True)

    @cached_property
    def training(self) -> pd.DataFrame:
        """One row a training photo, the oddest first; no row where the run did not record them.

        Columns: image (its name), part (that it shows, or its name), score and p_value (left out of the model that it
        is measured by), strip.
        """
        with named(self.folder):
            path = self.folder / "training_photos.csv"
            table = (
                read_csv(path) if path.is_file() else pd.DataFrame(columns=["image_path", "part", "score", "p_value"])
            )
            images = [Path("train", _name(path)) for path in table["image_path"]]
            photos = pd.DataFrame(
                {
                    "image": [image.name for image in images],
                    "part": table["part"],
                    "score": table["score"].astype(float),
                    "p_value": table["p_value"].astype(float),
                    "strip": self._strips(images),
                }
            )
        return photos.sort_values(["p_value", "score"], ascending=[True, False], ignore_index=True, kind="stable")

    @cached_property
    def arrays(self) -> dict[str, np.ndarray]:
        """What ``figures/data.npz`` holds; empty without it."""
        with named(self.folder):
            if not (self.folder / DATA_FILE).is_file():
                return {}
            with np.load(self.folder / DATA_FILE, allow_pickle=False) as data:
                return dict(data)

    @cached_property
    def changes(self) -> dict[str, Any] | None:
        """What changed against the run before, see ``changes``; ``None`` where there was none."""
        with named(self.folder):
            file = self.folder / CHANGES_FILE
            return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None

    @cached_property
    def refused(self) -> str | None:
        """Why it did not take the place of the run before; ``None`` where it did."""
        with named(self.folder):
            file = self.folder / REFUSED_FILE
            return file.read_text(encoding="utf-8") if file.is_file() else None

    @property
    def title(self) -> str:
        """Experiment and seed."""
        seed = self.metrics["seed"]
        return f"{self.metrics['experiment']}, {'unseeded' if seed is None else f'seed {seed}'}"

    @property
    def threshold(self) -> float | None:
        """The run's own image threshold."""
        return self.metrics["thresholds"]["image"]

    @property
    def defects(self) -> list[str]:
        """The defect types of the test images."""
        return sorted(set(self.predictions["defect_type"]) - {GOOD})

    @property
    def calibration(self) -> dict[str, Any]:
        """How the thresholds were calibrated; empty for a run that is not."""
        return self.metrics["calibration"] or {}

    @property
    def calibration_scores(self) -> np.ndarray:
        """Leave-one-out scores of the training images, float32, sorted; (0,) for a run that is not calibrated."""
        return np.array(self.calibration.get("scores", []), dtype=np.float32)

    @property
    def is_synthetic(self) -> bool:
        """Whether the images were drawn by a program."""
        return bool(self.metrics["data"]["synthetic"])

    @property
    def is_random(self) -> bool:
        """Whether the weights were never trained."""
        return bool(self.metrics["weights"]["source"] == "random")

    @property
    def is_real(self) -> bool:
        """Whether the images are real and the weights were trained: else the figures say nothing."""
        return not self.is_synthetic and not self.is_random

    @property
    def is_comparable(self) -> bool:
        """Whether published figures are of the same data."""
        data = self.metrics["data"]
        return self.is_real and (data["name"], data["category"]) == ("MVTec AD", "bottle")

    def curve(self) -> Curve | None:
        """Return the curve of the images; ``None`` without defective or without good ones."""
        scores, labels = self.predictions["score"].to_numpy(), self.predictions["label"].to_numpy(bool)
        return trace_curve([np.sort(scores[~labels])], scores[labels])

    def counts(self, threshold: float) -> dict[str, int]:
        """Return the confusion matrix at a threshold, by the rule ``score >= threshold``."""
        labels = self.predictions["label"].to_numpy(bool)
        return confusion_matrix(self.predictions["score"].to_numpy() >= threshold, labels)

    def _strips(self, images: Iterable[Path]) -> pd.Series:
        """Return where the run keeps the panels of these images, ``None`` where it does not."""
        taken: set[Path] = set()
        strips = [strip_path(picture_path(image, taken)) for image in images]
        return pd.Series([strip if (self.folder / strip).is_file() else None for strip in strips], dtype=object)


@contextlib.contextmanager
def named(folder: Path) -> Iterator[None]:
    """Name the run, where its files turn out to be broken.

    Raises:
        UserError: they are.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{folder}: there is no finished run: {Path(error.filename).name} is missing.") from error
    except KeyError as error:
        raise UserError(f"{folder}: the run's files are broken: they lack {error}.") from error
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{folder}: the run's files are broken: {in_a_line(error)}.") from error


def read_csv(path: Path) -> pd.DataFrame:
    """Read a table of a run, every digit of it."""
    return pd.read_csv(
        path,
        dtype={"image_path": str, "defect_type": str, "part": str},
        # A defect may be called 'NA'. Only round_trip gives back every digit.
        keep_default_na=False,
        na_values={name: [""] for name in ("p_value", "threshold", "predicted_label", "predicted_area")},
        float_precision="round_trip",
    )


def _name(path: str) -> str:
    """Return the file's name of a path that any system may have written."""
    return re.split(r"[/\\]", path)[-1]
