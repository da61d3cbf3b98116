"""``predict``: judge photos with a fitted model."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from padim_bottle.commands.arguments import Positive, Rate
from padim_bottle.console import quiet_imports
from padim_bottle.errors import UserError

if TYPE_CHECKING:
    from padim_bottle.predict.predictor import ImagePrediction, Predictor
    from padim_bottle.predict.verdict_table import Screen, VerdictTable


def predict(
    *photos: str,
    watch: Path | None = None,
    model: Path,
    output: Path | None = None,
    json: bool = False,
    csv: str | None = None,
    alpha: Rate | None = None,
    confidence: Rate | None = None,
    fdr: Rate | None = None,
    batch_size: Positive = 8,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    threads: Positive | None = None,
) -> int:
    """Judge photos with a fitted model.

    Prints a line a photo: path, score, p-value (how often a good photo scores at least this high) and verdict.

    Exit code: 0 all good, 1 some anomalous, 2 something could not be read (it is named; the rest is judged all the
    same).

    --watch FOLDER judges what lies in a folder and what arrives, when it is whole, until Ctrl-C. Its --csv gets a line
    a photo at once; started again with the same file it goes on where it stopped.

    With --csv it says when the photos, in their order, no longer look like those of the calibration: a line on the
    screen, and the evidence of drift in a column; it exceeds 100 by chance in near 1 % of all series, or fewer. Where
    photos of the training were grouped there is no such watch: photos of one part come in series, too.

    Args:
        photos (PATH): photos, folders of photos, or patterns such as 'a/*'
        watch (FOLDER): judge photos as they arrive; needs --csv FILE
        model (PATH): a run's folder, a model.ckpt, or the folder of an exported model
        output (FOLDER): write heatmaps and masks at each photo's own size
        json: print an object a line
        csv (FILE): write a table; - prints it
        alpha (RATE): share of good photos to be called anomalous (that of the training)
        confidence (RATE): keep that share, or the training's, with this confidence: a higher threshold
        fdr (RATE): judge all photos together: share of those called anomalous to be good
        batch_size (NUMBER): photos at a time
        device: for torch
        threads (NUMBER): threads of the CPU (all cores)
    """
    if bool(photos) == bool(watch):
        raise UserError("Name photos to judge, or a folder to --watch.")
    if json and csv == "-":
        raise UserError("--json and --csv - both print: choose one.")
    if fdr is not None and (alpha is not None or confidence is not None):
        raise UserError("--alpha and --confidence judge each photo by itself, --fdr all together: choose one.")
    if watch and (csv in (None, "-") or fdr is not None):
        raise UserError("--watch needs a file for its --csv, which remembers what is done, and takes no --fdr.")
    with quiet_imports():
        from padim_bottle.data.listing import find_photos, left_out
        from padim_bottle.predict.heatmaps import check_place
        from padim_bottle.predict.verdict_table import VerdictTable

    if output is not None:
        check_place(output, map(Path, photos))
    listing = find_photos(photos)
    for problem in listing.problems:
        print(f"error: {problem}", file=sys.stderr)
    if unused := left_out(listing.others):
        print(unused, file=sys.stderr)
    if photos and not listing.photos:
        return 2
    table = VerdictTable(None if watch else csv)  # refused before work
    with quiet_imports():
        from padim_bottle.predict.predictor import load_predictor

    load = partial(load_predictor, device=device, threads=threads, alpha=alpha, confidence=confidence)
    if watch:
        return _watch(model, load, watch, Path(str(csv)), output, json, batch_size)
    code = _judge(load(model), listing.photos, csv, table, output, json, fdr, batch_size)
    return 2 if listing.problems else code


def _judge(
    predictor: Predictor,
    photos: Sequence[Path],
    csv: str | None,
    table: VerdictTable,
    output: Path | None,
    json: bool,
    fdr: float | None,
    batch_size: int,
) -> int:
    from tqdm import tqdm

    from padim_bottle.predict.drift import monitor_of
    from padim_bottle.predict.heatmaps import Pictures
    from padim_bottle.predict.judge import judge
    from padim_bottle.predict.verdict_table import Screen, explain_together, judge_together, verdict_row

    if fdr is not None:
        explain_together(predictor.rule, fdr, len(photos))  # before the work: whether it can be done
    # Drift is a matter of order, so of a table.
    monitor = monitor_of(predictor.card) if csv else None
    pictures = None if output is None else Pictures(output, photos, read=predictor.read)
    form = "json" if json else None if csv == "-" else "text"
    # A table in a file is finished even if nobody reads the screen.
    screen = Screen(form, needed=table.file is None)
    verdicts: Counter[str] = Counter()

    def with_verdict(outcome: ImagePrediction | UserError, anomalous: bool) -> ImagePrediction | UserError:
        return outcome if isinstance(outcome, UserError) else replace(outcome, anomalous=anomalous)

    def judged(bar: Any) -> Iterator[dict[str, Any]]:
        for path, outcome in judge(predictor, photos, batch_size):
            if fdr is None and pictures is not None:
                pictures.write(path, outcome, screen.say)
            # Else it is an alarm until all are judged.
            yield verdict_row(predictor.rule, path, outcome if fdr is None else with_verdict(outcome, True), monitor)
            bar.update()

    with table, tqdm(total=len(photos), unit="photo", disable=None, leave=False) as bar:
        rows = judged(bar) if fdr is None else judge_together(judged(bar), fdr)
        for row in rows:
            verdicts[row.get("verdict", "unreadable")] += 1
            with bar.external_write_mode(file=sys.stdout):
                table.add(row)
                screen.add(row)
    if fdr is not None and pictures is not None:
        # Once more: the maps of all photos would have taken too much memory until the verdicts were known.
        for (path, outcome), row in zip(judge(predictor, photos, batch_size), rows, strict=True):
            pictures.write(path, with_verdict(outcome, row.get("verdict") == "anomalous"), screen.say)
    note = None
    if fdr is not None:
        note = explain_together(predictor.rule, fdr, verdicts.total() - verdicts["unreadable"])
    return _sum_up(verdicts, screen, note)


def _watch(
    model: Path,
    load: Callable[[Path], Predictor],
    folder: Path,
    csv: Path,
    output: Path | None,
    json: bool,
    batch_size: int,
) -> int:
    from padim_bottle.predict.heatmaps import Pictures
    from padim_bottle.predict.verdict_log import VerdictLog
    from padim_bottle.predict.verdict_table import Screen
    from padim_bottle.predict.watch import CurrentModel, stop_signal, watch

    screen = Screen("json" if json else "text", needed=False)
    current = CurrentModel(model, load, screen.say)
    pictures = None if output is None else Pictures(output, root=folder)
    verdicts: Counter[str] = Counter()
    with VerdictLog(csv) as log, stop_signal() as stop:
        screen.say(f"Watching {folder}, {len(log)} photos are done. Ctrl-C ends it.")
        if current.predictor.card["drift"] is None:
            screen.say("Drift is not watched: the photos of this model's training are grouped, or were not calibrated.")
        for row in watch(current, folder, log, stop, batch_size=batch_size, pictures=pictures, say=screen.say):
            verdicts[row.get("verdict", "unreadable")] += 1
            screen.add(row)
    return _sum_up(verdicts, screen)


def _sum_up(verdicts: Counter[str], screen: Screen, note: str | None = None) -> int:
    """Say how many photos got which verdict; return the exit code."""
    counts = ", ".join(f"{count} {verdict}" for verdict, count in sorted(verdicts.items()) if count)
    screen.say(counts or "no photo")
    if note is not None:
        screen.say(note)
    if verdicts["unreadable"]:
        return 2
    return 1 if verdicts["anomalous"] else 0
