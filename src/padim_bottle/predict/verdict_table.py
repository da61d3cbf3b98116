"""Verdicts as rows: printed, written to a table, or decided for a batch as a whole. Heavy imports are inside."""

from __future__ import annotations

import csv
import json
import math
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from padim_bottle.errors import UserError, close_broken_streams
from padim_bottle.files import printable

if TYPE_CHECKING:
    from padim_bottle.model.rule import Rule
    from padim_bottle.predict.drift import DriftMonitor
    from padim_bottle.predict.predictor import ImagePrediction

FIELDS = (
    "path", "score", "normalised_score", "p_value", "verdict", "threshold", "regions", "box", "map_mean", "drift",
    "error",
)  # fmt: skip
# Of the table that predict.py --watch goes on with: which content of the file was judged, by which model, and when.
LOG_FIELDS = (*FIELDS, "size", "mtime_ns", "model", "time")
_REMEMBERED = ("path", "map_mean", "size", "mtime_ns", "model")

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
        return {"path": spell_path(path), "error": _spell(str(outcome))}
    drift = {}
    if monitor is not None and outcome.map_mean is not None:
        drift = {"map_mean": outcome.map_mean, "drift": monitor.add(outcome.map_mean)}
    return {
        "path": spell_path(path),
        "score": outcome.score,
        "normalised_score": outcome.normalised_score,
        "p_value": outcome.p_value,
        "verdict": "anomalous" if outcome.anomalous else "good",
        "threshold": rule.threshold,
        "regions": [region.as_dict() for region in outcome.regions],
        **drift,
    }


def flat(row: Row) -> Row:
    """Return a row as a table has it: how many regions there are, and the box of the first."""
    if "regions" not in row:
        return row
    regions = row["regions"]
    return {**row, "regions": len(regions), "box": " ".join(map(str, regions[0]["box"])) if regions else None}


def spell_path(path: str | Path) -> str:
    """Return a path as rows have it: in one line, of UTF-8, and no spreadsheet takes it for a formula."""
    name = _spell(path)
    return os.path.join(os.curdir, name) if name.startswith(("=", "+", "-", "@", "\t", "\r")) else name  # noqa: PTH118


def _spell(text: str | Path) -> str:
    if isinstance(text, str) and text.isascii() and text.isprintable():
        return text  # as most names are
    return printable(text).replace("\n", "\\n").replace("\r", "\\r")


def judge_together(rows: Iterable[Row], rate: float) -> list[Row]:
    """Return the rows of a batch with the verdicts that a false discovery rate gives, see ``discoveries``.

    Args:
        rows: with the regions of alarms, as far as photos were judged.
        rate: the false discovery rate.
    """
    from padim_bottle.model.rule import discoveries

    rows = list(rows)
    judged = [row for row in rows if "error" not in row]
    found: Any = discoveries([row["p_value"] for row in judged], rate) if judged else []
    for row, anomalous in zip(judged, found, strict=True):
        row |= {"verdict": "anomalous"} if anomalous else {"verdict": "good", "regions": []}
        del row["threshold"]  # there is none: what is anomalous depends on the others
    return rows


def explain_together(rule: Rule, rate: float, judged: int) -> str:
    """Return what to know about the verdicts of ``judge_together``.

    Args:
        rule: of the model.
        rate: the false discovery rate.
        judged: photos that were judged together.

    Raises:
        UserError: the model gives no p-values.
    """
    if rule.calibration is None:
        raise UserError("--fdr needs p-values, and this model was trained without calibration.")
    count = len(rule.calibration)
    fewest = math.ceil(judged / (rate * (count + 1)) - 1e-9)
    possible = f"either at least {fewest} are called anomalous or none" if fewest <= judged else "none can be"
    return (
        f"Of the photos called anomalous near {rate * 100:g} % or fewer are expected to be good ones "
        f"(Benjamini-Hochberg). With {count} calibration scores no p-value is below 1 / {count + 1}, so of the "
        f"{judged} photos that were judged {possible}. No theorem covers leave-one-out p-values; simulations keep the "
        "rate."
    )


class Screen:
    """Prints rows, errors, and the first alarm of drift.

    Args:
        rows: how rows are printed: ``text`` or ``json``; ``None`` for not at all.
        needed: a reader that goes away ends the command; else it goes on without the screen.
    """

    def __init__(self, rows: str | None = "text", *, needed: bool = True) -> None:
        self._rows = rows
        self._needed = needed
        self._alarmed = False

    def add(self, row: Row) -> None:
        """Print a row."""
        if "error" in row:
            self.say(f"error: {row['error']}")
        if "drift" in row and not self._alarmed:
            from padim_bottle.predict.drift import ALARM, WARNING

            if row["drift"] >= ALARM:
                self._alarmed = True
                self.say(WARNING.format(evidence=row["drift"], path=row["path"]))
        if self._rows == "json":
            self.say(json.dumps(row, allow_nan=False), sys.stdout)
        elif self._rows == "text" and "error" not in row:
            self.say(text_line(row), sys.stdout)

    def say(self, sentence: str, stream: TextIO | None = None) -> None:
        """Print a sentence, on standard error if no stream is given."""
        try:
            print(sentence, file=stream or sys.stderr, flush=True)
        except OSError:
            # Of a pipe, or of a terminal that was closed.
            if self._needed or not close_broken_streams():
                raise


def text_line(row: Row) -> str:
    """Return a row as a person reads it."""
    p_value = "" if row["p_value"] is None else f"  p {row['p_value']:.4f}"
    return f"{row['path']}  score {row['score']:.4f}{p_value}  {row['verdict']}"


class VerdictTable:
    """A table of a batch: a file that appears whole, standard output, or a device or pipe that is written straight.

    Args:
        target: a path, of which links are followed; ``-`` for standard output; ``None`` for no table.

    Raises:
        UserError: it is a folder, or the log of a watch, or cannot be written.
    """

    def __init__(self, target: str | None) -> None:
        self.file: Path | None = None
        self._stream: TextIO | None = sys.stdout if target == "-" else None
        self._partial: Path | None = None
        if target is None or target == "-":
            return
        path = Path(target)
        if path.is_dir():
            raise UserError(f"Cannot write {target}: it is a folder. Name a file in it.")
        self._straight = path.exists() and not path.is_file()
        self.file = path if self._straight else path.resolve()
        if self.file.is_file():
            _refuse_log(self.file)

    def __enter__(self) -> VerdictTable:
        if self.file is not None:
            try:
                if self._straight:
                    self._stream = self.file.open("w", newline="", encoding="utf-8")
                else:
                    self.file.parent.mkdir(parents=True, exist_ok=True)
                    self._partial = self.file.with_name(f".{self.file.name}.partial-{os.getpid()}")
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
        try:
            self._stream.close()
            if failure is None and self._partial is not None:
                if self.file.is_file():
                    _refuse_log(self.file)
                self._partial.replace(self.file)
        finally:
            if self._partial is not None:
                self._partial.unlink(missing_ok=True)

    def add(self, row: Row) -> None:
        """Write a row."""
        if self._stream is not None:
            self._writer.writerow(flat(row))


def _refuse_log(file: Path) -> None:
    """Raise a UserError where a file is what a watch remembers by."""
    with file.open(encoding="utf-8", errors="replace") as stream:
        if is_log(stream.readline().rstrip("\n").split(",")):
            raise UserError(f"{file} is the log of predict.py --watch, which would forget what is done: name another.")


def is_log(columns: Sequence[str]) -> bool:
    """Tell the log of a watch by its columns: an earlier version's has fewer."""
    return set(_REMEMBERED) <= set(columns) <= set(LOG_FIELDS)
