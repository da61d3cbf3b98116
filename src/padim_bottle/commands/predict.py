"""``scripts/predict.py``: judge photos with a fitted model."""

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from padim_bottle.commands.arguments import new_parser, positive, rate
from padim_bottle.console import quiet_imports
from padim_bottle.errors import UserError, run_command
from padim_bottle.predict.verdict_table import (
    Screen,
    VerdictLog,
    VerdictTable,
    explain_together,
    judge_together,
    verdict_row,
)

PREDICT_HELP = """\
Judge photos with a fitted model: path, score, p-value (how often a good photo scores at least this high) and verdict,
a line a photo.

Exit code: 0 all good, 1 some anomalous, 2 something could not be read (it is named; the rest is judged all the same).

--watch FOLDER judges what lies in a folder and what arrives, when it is whole, until Ctrl-C. Its --csv gets a line a
photo at once; started again with the same file it goes on where it stopped.

With --csv it says when the photos, in their order, no longer look like those of the calibration: a line on the screen,
and the evidence of drift in a column; it exceeds 100 by chance in near 1 % of all series, or fewer. Where photos of the
training were grouped there is no such watch: photos of one part come in series, too.
"""


def predict_command(arguments: Sequence[str] | None = None) -> int:
    """Judge photos.

    Args:
        arguments: the command line; that of the process if not given.

    Returns:
        The exit code, see ``run_command``: 0 all photos are good, 1 some are anomalous, 2 for any that cannot be read.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    if bool(options.photos) == bool(options.watch):
        parser.error("name photos to judge, or a folder to --watch")
    if options.json and options.csv == "-":
        parser.error("--json and --csv - both print")
    if options.watch and (options.csv in (None, "-") or options.fdr):
        parser.error("--watch needs a file for its --csv, which remembers what is done, and takes no --fdr")
    return run_command(lambda: _watch(options) if options.watch else _predict(options))


def _parser() -> argparse.ArgumentParser:
    parser = new_parser("predict.py", PREDICT_HELP)
    parser.add_argument(
        "photos", nargs="*", metavar="PATH", help="photos, folders of photos, or patterns such as 'a/*'"
    )
    parser.add_argument("--watch", type=Path, metavar="FOLDER", help="judge photos as they arrive; needs --csv FILE")
    parser.add_argument(
        "--model", type=Path, required=True, help="a run's folder, a model.ckpt, or the folder of an exported model"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="write heatmaps and masks at each photo's own size")
    parser.add_argument("--json", action="store_true", help="print an object a line")
    parser.add_argument("--csv", metavar="FILE", help="write a table; - prints it")
    verdict = parser.add_mutually_exclusive_group()
    verdict.add_argument(
        "--alpha", type=rate, metavar="RATE", help="share of good photos to be called anomalous (that of the training)"
    )
    verdict.add_argument(
        "--fdr", type=rate, metavar="RATE", help="judge all photos together: share of those called anomalous to be good"
    )
    parser.add_argument("--batch-size", type=positive, default=8, help="photos at a time (%(default)s)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="for torch (%(default)s)")
    parser.add_argument("--threads", type=positive, help="threads of the CPU (all cores)")
    return parser


def _predict(options: argparse.Namespace) -> int:
    with quiet_imports():
        from padim_bottle.data.listing import find_photos, left_out

    listing = find_photos(options.photos)
    photos, problems = listing.photos, listing.problems
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    if unused := left_out(listing.others):
        print(unused, file=sys.stderr)
    if not photos:
        return 2

    with quiet_imports():
        from tqdm import tqdm

        from padim_bottle.predict.drift import monitor_of
        from padim_bottle.predict.heatmaps import Pictures
        from padim_bottle.predict.judge import judge
        from padim_bottle.predict.predictor import load_predictor

    table = VerdictTable(options.csv)
    predictor = load_predictor(options.model, device=options.device, threads=options.threads, alpha=options.alpha)
    if options.fdr is not None:
        explain_together(predictor.rule, options.fdr, len(photos))  # before the work: whether it can be done
    # Drift is a matter of order, so of a table.
    monitor = monitor_of(predictor.card) if options.csv else None
    pictures = None if options.output is None else Pictures(options.output, photos)
    form = "json" if options.json else None if options.csv == "-" else "text"
    # A table in a file is finished, whoever looks on.
    screen = Screen(form, needed=table.file is None)
    verdicts: Counter[str] = Counter()

    def judged(bar: Any) -> Iterator[dict[str, Any]]:
        for path, outcome in judge(predictor, photos, options.batch_size):
            row = verdict_row(predictor.rule, path, outcome, monitor)
            if pictures is not None and not isinstance(outcome, UserError) and (why := pictures.write(path, outcome)):
                screen.say(f"no pictures: {why}")
            bar.update()
            yield row

    with table, tqdm(total=len(photos), unit="photo", disable=None, leave=False) as bar:
        rows = judged(bar)
        for row in rows if options.fdr is None else judge_together(rows, options.fdr):
            verdicts[row.get("verdict", "unreadable")] += 1
            with bar.external_write_mode(file=sys.stdout):
                table.add(row)
                screen.add(row)
    note = None
    if options.fdr is not None:
        note = explain_together(predictor.rule, options.fdr, verdicts.total() - verdicts["unreadable"])
    return _sum_up(verdicts, screen, note, problems)


def _watch(options: argparse.Namespace) -> int:
    with quiet_imports():
        from padim_bottle.predict.drift import monitor_of
        from padim_bottle.predict.heatmaps import Pictures
        from padim_bottle.predict.predictor import load_predictor
        from padim_bottle.predict.watch import stop_signal, watch

    predictor = load_predictor(options.model, device=options.device, threads=options.threads, alpha=options.alpha)
    pictures = None if options.output is None else Pictures(options.output, root=options.watch)
    monitor = monitor_of(predictor.card)
    screen = Screen("json" if options.json else "text", needed=False)
    verdicts: Counter[str] = Counter()
    with VerdictLog(Path(options.csv), predictor.digest) as log, stop_signal() as stop:
        screen.say(f"Watching {options.watch}, {len(log)} photos are done. Ctrl-C ends it.")
        if monitor is None:
            screen.say("Drift is not watched: the photos of this model's training are grouped, or were not calibrated.")
        for row in watch(
            predictor,
            options.watch,
            log,
            stop,
            batch_size=options.batch_size,
            pictures=pictures,
            monitor=monitor,
            say=screen.say,
        ):
            verdicts[row.get("verdict", "unreadable")] += 1
            screen.add(row)
    return _sum_up(verdicts, screen)


def _sum_up(verdicts: Counter[str], screen: Screen, note: str | None = None, problems: Sequence[str] = ()) -> int:
    counts = ", ".join(f"{count} {verdict}" for verdict, count in sorted(verdicts.items()) if count)
    screen.say(counts or "no photo")
    if note is not None:
        screen.say(note)
    if problems or verdicts["unreadable"]:
        return 2
    return 1 if verdicts["anomalous"] else 0
