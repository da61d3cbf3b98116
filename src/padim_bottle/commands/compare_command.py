"""``compare``: compare experiments over their seeds."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from padim_bottle.errors import UserError

if TYPE_CHECKING:
    import pandas as pd


def compare(*folders: Path, output: Path | None = None) -> int:
    """Compare experiments over their seeds.

    Reads <experiment>/seed_<n>/ of every folder given and writes
      summary.csv      a row a run, and the means of each experiment
      summary.md       means, intervals, differences between experiments, and what they do and do not say
      comparison.png   AUPRO against AUPIMO, time and memory
      side_by_side.png the experiments' maps of the hardest images, where the runs kept their pictures

    Exit code: 0, 1 where runs were left out because something is wrong with them, 2 an error.

    Args:
        folders (FOLDER): an experiment, results/<experiment>
        output (FOLDER): where to write (default: the folder that holds them; of one experiment, its own)
    """
    from padim_bottle.compare.outputs import write_comparison
    from padim_bottle.runs.table import read_runs

    if not folders:
        raise UserError("Name at least one experiment, for example results/padim_resnet18.")
    runs = read_runs(folders)
    written = write_comparison(folders, output, runs)
    _print_key_figures(runs.table)
    for name in ("summary.csv", "summary.md", "comparison.png"):
        print(f"  {written.with_name(name)}")
    if (maps := written.with_name("side_by_side.png")).is_file():
        print(f"  {maps}")
    for note in runs.notes:
        print(f"note: {note}", file=sys.stderr)
    for problem in runs.problems:
        print(f"left out: {problem}", file=sys.stderr)
    return 1 if runs.problems else 0


def _print_key_figures(table: pd.DataFrame) -> None:
    from padim_bottle.compare.markdown import display_names, key_figures, verdicts
    from padim_bottle.compare.statistics import paired_differences
    from padim_bottle.evaluation.metrics import headings
    from padim_bottle.tables import DASH

    for name, _, *cells in (row.cells for row in key_figures(table)):
        print(f"{name}:")
        for label, cell in zip(headings().values(), cells, strict=True):
            print(f"  {label:<20} {cell or DASH}")
    for sentence in verdicts(paired_differences(table), display_names(table)):
        print(sentence)
