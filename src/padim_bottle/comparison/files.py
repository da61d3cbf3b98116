"""The command that compares finished runs: a table of all runs, a report and a figure.

pandas and matplotlib are loaded inside the functions: ``--help`` answers at once.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from padim_bottle.command_line import fail, new_parser
from padim_bottle.errors import UserError
from padim_bottle.files import write_whole

if TYPE_CHECKING:
    import pandas as pd

    from padim_bottle.runs.table import FinishedRuns

COMPARE_HELP = """\
Compare experiments over their seeds. Reads <experiment>/seed_<n>/ of every folder given and writes
  summary.csv      one row a run
  summary.md       means, intervals, differences between experiments, and what they do and do not say
  comparison.png   every run, the means and the published figures
"""


def compare_command(arguments: Sequence[str] | None = None) -> int:
    """Run ``scripts/compare.py``: read runs, write the comparison, print its key figures.

    Args:
        arguments: the command line; that of the process if not given.

    Returns:
        The exit code: 0, 1 where runs were left out because something is wrong with them, 2 for an error that the
        user can mend.
    """
    parser = new_parser("compare.py", COMPARE_HELP)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="an experiment, results/<experiment>")
    parser.add_argument(
        "--output", type=Path, help="where to write (default: the folder that holds them; of one experiment, its own)"
    )
    options = parser.parse_args(arguments)
    try:
        from padim_bottle.runs.table import read_runs

        runs = read_runs(options.folders)
        written = _write(runs, options.output or _common_folder(options.folders))
    except UserError as error:
        return fail(error)
    _print_key_figures(runs.table)
    for name in ("summary.csv", "summary.md", "comparison.png"):
        print(f"  {written.with_name(name)}")
    for note in runs.notes:
        print(f"note: {note}", file=sys.stderr)
    for problem in runs.problems:
        print(f"left out: {problem}", file=sys.stderr)
    return 1 if runs.problems else 0


def write_comparison(folders: Sequence[str | Path], output: str | Path | None = None) -> Path:
    """Write ``summary.csv``, ``summary.md`` and ``comparison.png`` on the finished runs of some experiments.

    Args:
        folders: experiments' folders, ``<results>/<experiment>``.
        output: where to write; if not given, the folder that holds them, or of one experiment its own.

    Returns:
        Path of ``summary.md``.

    Raises:
        UserError: a folder that is not there or without a finished run, an output that cannot be written.
    """
    from padim_bottle.runs.table import read_runs

    return _write(read_runs(folders), Path(output) if output is not None else _common_folder(folders))


def _write(runs: FinishedRuns, output: Path) -> Path:
    from padim_bottle.comparison.figure import draw_comparison
    from padim_bottle.comparison.markdown import report

    table = runs.table.drop(columns="folder")
    picture = io.BytesIO()
    draw_comparison(runs.table).savefig(picture, format="png", dpi=160, metadata={"Software": None})
    text = report(runs)
    try:
        write_whole(output / "summary.csv", table.to_csv(index=False))
        write_whole(output / "comparison.png", picture.getvalue())
        write_whole(output / "summary.md", text)
    except OSError as error:
        raise UserError(f"Cannot write the comparison to {output}: {error}.") from error
    return output / "summary.md"


def _common_folder(folders: Sequence[str | Path]) -> Path:
    paths = {Path(folder).resolve() for folder in folders}
    if len(paths) == 1:
        return paths.pop()
    parents = {path.parent for path in paths}
    if len(parents) > 1:
        raise UserError("The experiments lie in different folders: say with --output where to write.")
    return parents.pop()


def _print_key_figures(table: pd.DataFrame) -> None:
    from padim_bottle.comparison.markdown import KEY_LABELS, display_names, spell_figure, spell_interval, verdicts
    from padim_bottle.runs.table import paired_differences, summarise

    names = display_names(table)
    summary = summarise(table).set_index(["experiment", "metric"])
    for experiment, seeds in table["experiment"].value_counts(sort=False).items():
        print(f"{names[experiment]}, {seeds} seed{'s' * (seeds > 1)}:")
        for metric, label in KEY_LABELS.items():
            if (experiment, metric) in summary.index:
                row = summary.loc[(experiment, metric)]
                spread = f"{spell_figure(row['mean'])} ± {spell_figure(row['std'])}"
                print(f"  {label:<30} {spread:<17} 95 % interval {spell_interval(row['low'], row['high'])}")
    for sentence in verdicts(paired_differences(table), names):
        print(sentence)
