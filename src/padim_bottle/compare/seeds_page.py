"""``report.html`` of a sweep: experiments over their seeds, in one file."""

import os
from pathlib import Path

from padim_bottle.compare.comparison import Comparison
from padim_bottle.compare.figure import CAPTION
from padim_bottle.compare.markdown import is_comparable, is_real, key_figures
from padim_bottle.errors import UserError
from padim_bottle.evaluation.metrics import headings
from padim_bottle.files import write_whole
from padim_bottle.report.gallery import render
from padim_bottle.report.html import METRICS_NOTE, comparison_table, data_source, render_page
from padim_bottle.tables import Row, Table, figure

DEMONSTRATION = {
    "title": "Demonstration.",
    "text": "Experiments marked SYNTHETIC IMAGES or RANDOM WEIGHTS say nothing about MVTec AD and must not be set "
    "against others.",
}


def write_sweep_report(compared: Comparison, output: Path) -> Path:
    """Write the ``report.html`` that compares experiments over their seeds and links to the report of each run.

    Args:
        compared: the experiments.
        output: folder to write to.

    Returns:
        The path of the report.

    Raises:
        UserError: nothing can be written.
    """
    table, names, maps = compared.table, compared.names, compared.maps
    warnings = [] if is_real(table).all() else [DEMONSTRATION]
    warnings += [{"title": "Left out.", "text": problem} for problem in compared.runs.problems]
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
        verdicts=compared.verdicts,
        figure=data_source("image/svg+xml", render(compared.figure, "svg")),
        caption=CAPTION,
        maps=maps and {**maps._asdict(), "source": data_source("image/png", maps.png)},
        runs=Table(["", *headings().values()], rows, title="All runs"),
        footer=f"{len(table)} runs.",
    )
    try:
        write_whole(output / "report.html", text)
    except OSError as error:
        raise UserError(f"Cannot write the report to {output}: {error}.") from error
    return output / "report.html"
