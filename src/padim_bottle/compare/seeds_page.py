"""``report.html`` of a sweep: experiments over their seeds, in one file."""

import os
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from padim_bottle.compare.figure import CAPTION, draw_comparison
from padim_bottle.compare.maps import draw_maps
from padim_bottle.compare.markdown import display_names, is_comparable, is_real, key_figures, verdicts
from padim_bottle.compare.statistics import paired_differences
from padim_bottle.errors import UserError
from padim_bottle.evaluation.metrics import headings
from padim_bottle.files import write_whole
from padim_bottle.report.gallery import render
from padim_bottle.report.html import METRICS_NOTE, comparison_table, data_source, render_page
from padim_bottle.runs.table import FinishedRuns, read_runs
from padim_bottle.tables import Row, Table, figure

DEMONSTRATION = {
    "title": "Demonstration.",
    "text": "Experiments marked SYNTHETIC IMAGES or RANDOM WEIGHTS say nothing about MVTec AD and must not be set "
    "against others.",
}


def write_sweep_report(folders: Sequence[Path], output: Path, runs: FinishedRuns | None = None) -> Path:
    """Write the ``report.html`` that compares experiments over their seeds and links to the report of each run.

    Args:
        folders: experiments' folders, ``<results>/<experiment>``.
        output: folder to write to.
        runs: what ``read_runs`` read from the folders, where that is known.

    Returns:
        The path of the report.

    Raises:
        UserError: a folder without a finished run, or nothing can be written.
    """
    runs = runs or read_runs(folders)
    table, names = runs.table, display_names(runs.table)
    warnings = [] if is_real(table).all() else [DEMONSTRATION]
    warnings += [{"title": "Left out.", "text": problem} for problem in runs.problems]
    rows = []
    for row in table.itertuples():
        link = Path(row.folder, "report.html")
        address = Path(os.path.relpath(link, output.resolve())).as_posix() if link.is_file() else None
        cells = [figure(getattr(row, name)) for name in headings()]
        rows.append(Row([f"{names[row.experiment]}, seed {row.seed}", *cells], link=address))
    title = names[next(iter(names))] if len(names) == 1 else f"{len(names)} experiments over their seeds"
    text = render_page(
        "sweep.html.j2",
        script="",
        title=title,
        warnings=warnings,
        metrics=comparison_table(key_figures(table), bool(is_comparable(table).any())),
        metrics_note=f"Mean ± standard deviation over seeds. {METRICS_NOTE} Intervals, and what the seeds do not say, "
        "are in summary.md.",
        verdicts=verdicts(paired_differences(table), names),
        figure=data_source("image/svg+xml", render(draw_comparison(table), "svg")),
        caption=CAPTION,
        maps=_maps(table),
        runs=Table(["", *headings().values()], rows, title="All runs"),
        footer=f"{len(table)} runs.",
    )
    try:
        write_whole(output / "report.html", text)
    except OSError as error:
        raise UserError(f"Cannot write the report to {output}: {error}.") from error
    return output / "report.html"


def _maps(table: pd.DataFrame) -> dict[str, str] | None:
    drawing = draw_maps(table)
    if drawing is None:
        return None
    title, caption, drawn = drawing
    return {"title": title, "caption": caption, "source": data_source("image/png", render(drawn, "png"))}
