"""``compare``: compare experiments over their seeds."""

import sys
from pathlib import Path

from padim_bottle.errors import UserError


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
    from padim_bottle.compare.comparison import Comparison
    from padim_bottle.compare.markdown import key_figures
    from padim_bottle.compare.outputs import write_comparison
    from padim_bottle.evaluation.metrics import headings
    from padim_bottle.tables import DASH

    if not folders:
        raise UserError("Name at least one experiment, for example results/padim_resnet18.")
    compared = Comparison(folders)
    written = write_comparison(compared, output)
    for name, _, *cells in (row.cells for row in key_figures(compared.table)):
        print(f"{name}:")
        for label, cell in zip(headings().values(), cells, strict=True):
            print(f"  {label:<20} {cell or DASH}")
    for sentence in compared.verdicts:
        print(sentence)
    for name in ("summary.csv", "summary.md", "comparison.png"):
        print(f"  {written.with_name(name)}")
    if (maps := written.with_name("side_by_side.png")).is_file():
        print(f"  {maps}")
    for note in compared.runs.notes:
        print(f"note: {note}", file=sys.stderr)
    for problem in compared.runs.problems:
        print(f"left out: {problem}", file=sys.stderr)
    return 1 if compared.runs.problems else 0
