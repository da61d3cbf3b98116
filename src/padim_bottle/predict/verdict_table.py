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

from filelock import FileLock, Timeout

from padim_bottle.errors import UserError, close_broken_streams, in_a_line
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


def _flat(row: Row) -> Row:
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
            self._writer.writerow(_flat(row))


def _refuse_log(file: Path) -> None:
    """Raise a UserError where a file is what a watch remembers by."""
    with file.open(encoding="utf-8", errors="replace") as stream:
        if _is_log(stream.readline().rstrip("\n").split(",")):
            raise UserError(f"{file} is the log of predict.py --watch, which would forget what is done: name another.")


def _is_log(columns: Sequence[str]) -> bool:
    """Tell the log of a watch by its columns: an earlier version's has fewer."""
    return set(_REMEMBERED) <= set(columns) <= set(LOG_FIELDS)


class VerdictLog:
    """A table that grows by a line a photo, and goes on where an earlier process stopped.

    Args:
        file: the CSV file; links are followed.

    Attributes:
        model: digest of the model whose rows are written.
        map_means: of the photos that were judged, in their order, by the digest of their model.

    Raises:
        UserError: on entering: it is in use, is no such table, or cannot be written.
    """

    def __init__(self, file: Path) -> None:
        self.file = file.resolve()
        self.model = ""
        self.map_means: dict[str, list[float]] = {}
        self._lock = FileLock(f"{self.file}.lock")
        self._done: dict[str, tuple[int, int]] = {}

    def __enter__(self) -> VerdictLog:
        if self.file.exists() and not self.file.is_file():
            raise UserError(f"{self.file} is no file: a watch goes on with what its table has. Name a file.")
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
            self._stream = self.file.open("a+", newline="", encoding="utf-8", errors="replace")
        except Timeout:
            raise UserError(f"{self.file} is being written by another process: stop that, or name another.") from None
        except OSError as error:
            self._lock.release()
            raise UserError(f"Cannot write {self.file}: {error.strerror}.") from error
        try:
            self._resume()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        self._lock.release()

    def _resume(self) -> None:
        whole = self.file.read_bytes().rfind(b"\n") + 1
        self._stream.truncate(whole)
        self._stream.seek(0)
        reader = csv.DictReader(self._stream)
        if whole and not _is_log(reader.fieldnames or ()):
            raise UserError(f"{self.file} is no table of predict.py --watch: name a file of its own.")
        try:
            for row in reader:
                self._done[row["path"]] = (int(row["size"]), int(row["mtime_ns"]))
                self._remember(row)
        except (TypeError, ValueError) as error:
            where = f"{self.file}, line {reader.line_num}"
            raise UserError(f"{where}: {in_a_line(error)}. Mend the line, or name another file.") from error
        fields = reader.fieldnames if whole else LOG_FIELDS
        self._writer = csv.DictWriter(self._stream, fields or (), extrasaction="ignore", lineterminator="\n")
        if not whole:
            self._writer.writeheader()
            self._stream.flush()

    def __len__(self) -> int:
        return len(self._done)

    def content(self, path: str) -> tuple[int, int] | None:
        """Return size and time of the file as it was when it was judged last; ``None`` if it never was."""
        return self._done.get(path)

    def add(self, row: Row, content: tuple[int, int]) -> None:
        """Write a row; it stays even if the process is killed next."""
        size, mtime_ns = content
        row = {**row, "size": size, "mtime_ns": mtime_ns, "model": self.model, "time": _now()}
        self._writer.writerow(_flat(row))
        self._stream.flush()
        self._done[row["path"]] = content
        self._remember(row)

    def _remember(self, row: Row) -> None:
        if row.get("map_mean") not in (None, ""):
            self.map_means.setdefault(row["model"], []).append(float(row["map_mean"]))


def _now() -> str:
    from datetime import datetime

    return datetime.now().astimezone().isoformat(timespec="milliseconds")
