"""``scripts/predict.py``: judge photos with a fitted model."""

from __future__ import annotations

import argparse
import csv
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from padim_bottle.commands.arguments import new_parser, positive
from padim_bottle.console import quiet_imports
from padim_bottle.deploy.photos import draw, find_photos, judge
from padim_bottle.errors import UserError, run_command

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from padim_bottle.deploy.predictor import ImagePrediction

PREDICT_HELP = """\
Judge photos with a fitted model: path, score, p-value (how often a good photo scores at least this high) and verdict,
a line a photo.

Exit code: 0 all good, 1 some anomalous, 2 something could not be read (it is named; the rest is judged all the same).
"""

FIELDS = ("path", "score", "normalised_score", "p_value", "verdict", "threshold", "error")


def predict_command(arguments: Sequence[str] | None = None) -> int:
    """Judge photos.

    Args:
        arguments: the command line; that of the process if not given.

    Returns:
        The exit code, see ``run_command``: 0 all photos are good, 1 some are anomalous, 2 for any that cannot be read.
    """
    options = _parser().parse_args(arguments)
    return run_command(lambda: _predict(options))


def _parser() -> argparse.ArgumentParser:
    parser = new_parser("predict.py", PREDICT_HELP)
    parser.add_argument(
        "photos", nargs="+", metavar="PATH", help="photos, folders of photos, or patterns such as 'a/*'"
    )
    parser.add_argument(
        "--model", type=Path, required=True, help="a run's folder, a model.ckpt, or the folder of an exported model"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="write heatmaps and masks at each photo's own size")
    table = parser.add_mutually_exclusive_group()
    table.add_argument("--json", action="store_true", help="print an object a line")
    table.add_argument("--csv", metavar="FILE", help="write a table; - prints it")
    parser.add_argument("--batch-size", type=positive, default=8, help="photos at a time (%(default)s)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="for torch (%(default)s)")
    parser.add_argument("--threads", type=positive, help="threads of the CPU (all cores)")
    return parser


def _predict(options: argparse.Namespace) -> int:
    photos, problems = find_photos(options.photos)
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if not photos:
        return 2

    with quiet_imports():
        from tqdm import tqdm

        from padim_bottle.deploy.predictor import load_predictor

    predictor = load_predictor(options.model, device=options.device, threads=options.threads)
    pictures = None if options.output is None else _Pictures(options.output, photos)
    verdicts: Counter[str] = Counter()
    with _Report(options, predictor.card) as report, tqdm(
        total=len(photos), unit="photo", disable=None, leave=False
    ) as bar:  # fmt: skip
        for path, outcome, photo in judge(predictor, photos, options.batch_size):
            bar.update()
            with bar.external_write_mode(file=sys.stdout):
                report.add(path, outcome)
            if isinstance(outcome, UserError):
                verdicts["unreadable"] += 1
                continue
            verdicts["anomalous" if outcome.anomalous else "good"] += 1
            if pictures is not None:
                pictures.write(path, photo, outcome)
    print(", ".join(f"{count} {verdict}" for verdict, count in sorted(verdicts.items())), file=sys.stderr)
    if problems or verdicts["unreadable"]:
        return 2
    return 1 if verdicts["anomalous"] else 0


class _Report:
    """Prints a line a photo, or writes the table."""

    def __init__(self, options: argparse.Namespace, card: dict[str, Any]) -> None:
        self.as_json = options.json
        self.as_text = not options.json and options.csv != "-"
        self.threshold = card["thresholds"]["image"]
        self.file: Path | None = None
        self.table: Any = None
        if options.csv == "-":
            self.table = csv.DictWriter(sys.stdout, FIELDS, lineterminator="\n")
        elif options.csv is not None:
            self.file = Path(options.csv)
            self._partial = self.file.with_name(f".{self.file.name}.partial-{os.getpid()}")

    def __enter__(self) -> _Report:
        if self.file is not None:
            try:
                self.file.parent.mkdir(parents=True, exist_ok=True)
                self._stream = self._partial.open("w", newline="", encoding="utf-8")
            except OSError as error:
                raise UserError(f"Cannot write {self.file}: {error.strerror}.") from error
            self.table = csv.DictWriter(self._stream, FIELDS, lineterminator="\n")
        if self.table is not None:
            self.table.writeheader()
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        if self.file is not None:
            self._stream.close()
            if failure is None:
                self._partial.replace(self.file)
            else:
                self._partial.unlink(missing_ok=True)

    def add(self, path: Path, outcome: ImagePrediction | UserError) -> None:
        row = self._row(path, outcome)
        if isinstance(outcome, UserError):
            print(f"error: {outcome}", file=sys.stderr)
        if self.table is not None:
            self.table.writerow(row)
        elif self.as_json:
            print(json.dumps(row))
        if (self.file is None and (self.table is not None or self.as_json)) or isinstance(outcome, UserError):
            return
        p_value = "" if outcome.p_value is None else f"  p {outcome.p_value:.4f}"
        print(f"{path}  score {outcome.score:.4f}{p_value}  {row['verdict']}")

    def _row(self, path: Path, outcome: ImagePrediction | UserError) -> dict[str, Any]:
        if isinstance(outcome, UserError):
            return {"path": str(path), "error": str(outcome)}
        return {
            "path": str(path),
            "score": outcome.score,
            "normalised_score": outcome.normalised_score,
            "p_value": outcome.p_value,
            "verdict": "anomalous" if outcome.anomalous else "good",
            "threshold": self.threshold,
        }


class _Pictures:
    """Writes ``<photo>_heatmap.png`` and ``<photo>_mask.png``, in the folders of the photos as far as they differ."""

    def __init__(self, folder: Path, photos: Sequence[Path]) -> None:
        self.folder = folder
        absolute = [Path(os.path.abspath(photo)) for photo in photos]  # noqa: PTH100 - links stay as they were named
        self.root = Path(os.path.commonpath([photo.parent for photo in absolute]))
        self.taken = Counter(photo.with_suffix("") for photo in absolute)

    def write(self, path: Path, photo: NDArray[np.uint8], prediction: ImagePrediction) -> None:
        from padim_bottle.figures.panels import write_png

        path = Path(os.path.abspath(path))  # noqa: PTH100
        # a.png and a.jpg in one folder keep their suffixes.
        name = path.stem if self.taken[path.with_suffix("")] == 1 else path.name
        place = self.folder / path.parent.relative_to(self.root)
        heatmap, mask = draw(photo, prediction)
        try:
            write_png(place / f"{name}_heatmap.png", heatmap)
            write_png(place / f"{name}_mask.png", mask)
        except OSError as error:
            raise UserError(f"Cannot write the pictures to {place}: {error.strerror}.") from error
