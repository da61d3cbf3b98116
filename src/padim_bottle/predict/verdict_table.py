"""Verdicts as rows: printed, written to a table, or decided for a batch as a whole. Heavy imports are inside."""

from __future__ import annotations

import csv
import json
import math
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from padim_bottle.errors import UserError

if TYPE_CHECKING:
    from padim_bottle.model.rule import Rule
    from padim_bottle.predict.drift import DriftMonitor
    from padim_bottle.predict.predictor import ImagePrediction, Predictor

FIELDS = ("path", "score", "normalised_score", "p_value", "verdict", "threshold", "map_mean", "drift", "error")

Row = dict[str, Any]


def verdict_row(
    rule: Rule, path: Path, outcome: ImagePrediction | UserError, monitor: DriftMonitor | None = None
) -> Row:
    """Return what is said about a photo, by the names of ``FIELDS``; those that say nothing are left out.

    Args:
        rule: of the model.
        path: of the photo.
        outcome: its prediction, or why there is none.
        monitor: takes the photo as the next one.
    """
    if isinstance(outcome, UserError):
        return {"path": str(path), "error": str(outcome)}
    drift = {}
    if monitor is not None and outcome.map_mean is not None:
        drift = {"map_mean": outcome.map_mean, "drift": monitor.add(outcome.map_mean)}
    return {
        "path": str(path),
        "score": outcome.score,
        "normalised_score": outcome.normalised_score,
        "p_value": outcome.p_value,
        "verdict": "anomalous" if outcome.anomalous else "good",
        "threshold": rule.threshold,
        **drift,
    }


def judge_together(rows: Iterable[Row], rate: float) -> list[Row]:
    """Return the rows of a batch with the verdicts that a false discovery rate gives, see ``discoveries``."""
    from padim_bottle.model.rule import discoveries

    rows = list(rows)
    judged = [row for row in rows if "error" not in row]
    found: Any = discoveries([row["p_value"] for row in judged], rate) if judged else []
    for row, anomalous in zip(judged, found, strict=True):
        row["verdict"] = "anomalous" if anomalous else "good"
        del row["threshold"]  # there is none: what is anomalous depends on the others
    return rows


def explain_together(predictor: Predictor, rate: float, photos: int) -> str:
    """Return what to know about the verdicts of ``judge_together``.

    Raises:
        UserError: the model gives no p-values.
    """
    if predictor.rule.calibration is None:
        raise UserError("--fdr needs p-values, and this model was trained without calibration.")
    count = len(predictor.rule.calibration)
    fewest = math.ceil(photos / (rate * (count + 1)) - 1e-9)
    return (
        f"At most {rate:.0%} of the photos called anomalous are expected to be good ones (Benjamini-Hochberg). With "
        f"{count} calibration photos no p-value is below 1 / {count + 1}, so of {photos} photos either at least "
        f"{fewest} are called anomalous or none. No theorem covers leave-one-out p-values; simulations keep the rate."
    )


class VerdictTable:
    """Prints a row as a line of text or JSON, or writes it to a table that appears whole.

    Args:
        table: the CSV file, ``-`` for standard output; None for none.
        as_json: print objects instead of lines of text.
    """

    def __init__(self, table: str | None, *, as_json: bool = False) -> None:
        self.as_json = as_json
        self._alarmed = False
        self.as_text = table != "-" and not as_json
        self.file = None if table in (None, "-") else Path(table)
        self._stream: TextIO | None = sys.stdout if table == "-" else None

    def __enter__(self) -> VerdictTable:
        if self.file is not None:
            self._partial = self.file.with_name(f".{self.file.name}.partial-{os.getpid()}")
            try:
                self.file.parent.mkdir(parents=True, exist_ok=True)
                self._stream = self._partial.open("w", newline="", encoding="utf-8")
            except OSError as error:
                raise UserError(f"Cannot write {self.file}: {error.strerror}.") from error
        if self._stream is not None:
            self._writer = csv.DictWriter(self._stream, FIELDS, lineterminator="\n")
            self._writer.writeheader()
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        if self.file is None or self._stream is None:
            return
        self._stream.close()
        if failure is None:
            self._partial.replace(self.file)
        else:
            self._partial.unlink(missing_ok=True)

    def add(self, row: Row) -> None:
        """Print and write a row."""
        if self._stream is not None:
            self._writer.writerow(row)
        if "error" in row:
            print(f"error: {row['error']}", file=sys.stderr)
        if "drift" in row and not self._alarmed:
            from padim_bottle.predict.drift import ALARM, WARNING

            if row["drift"] >= ALARM:
                self._alarmed = True
                print(WARNING.format(evidence=row["drift"], path=row["path"]), file=sys.stderr)
        if self.as_json:
            print(json.dumps(row), flush=True)
        elif self.as_text and "error" not in row:
            print(text_line(row), flush=True)


def text_line(row: Row) -> str:
    """Return a row as a person reads it."""
    p_value = "" if row["p_value"] is None else f"  p {row['p_value']:.4f}"
    return f"{row['path']}  score {row['score']:.4f}{p_value}  {row['verdict']}"
