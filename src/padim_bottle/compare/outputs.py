"""The files that a comparison leaves."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from padim_bottle.compare.comparison import Comparison
from padim_bottle.compare.markdown import report
from padim_bottle.compare.statistics import mean_rows
from padim_bottle.errors import UserError
from padim_bottle.files import write_whole
from padim_bottle.report.gallery import render


def write_comparison(compared: Sequence[str | Path] | Comparison, output: str | Path | None = None) -> Path:
    """Write ``summary.csv``, ``summary.md`` and ``comparison.png`` on the finished runs of some experiments.

    Where the runs kept their pictures, ``side_by_side.png`` shows the experiments' maps of the hardest images; where
    models were run on several categories, ``categories.csv`` has a row for each and their mean.

    Args:
        compared: experiments' folders, ``<results>/<experiment>``, or what was read from them.
        output: where to write; if not given, the folder that holds them, or of one experiment its own.

    Returns:
        Path of ``summary.md``.

    Raises:
        UserError: a folder that is not there or without a finished run, an output that cannot be written.
    """
    if not isinstance(compared, Comparison):
        compared = Comparison(compared)
    output = Path(output) if output is not None else _common_folder(compared.folders)
    # The rows of runs, and below each experiment's a row of their means.
    table = pd.concat([compared.table.assign(row="run"), mean_rows(compared.table).assign(row="mean")])
    order = table["experiment"].map({name: i for i, name in enumerate(table["experiment"].unique())})
    table = table.iloc[order.argsort(kind="stable")].drop(columns="folder")
    table.insert(1, "row", table.pop("row"))
    files = {
        "summary.csv": table.to_csv(index=False),
        "comparison.png": render(compared.figure, "png"),
        "summary.md": report(compared),
    }
    if compared.maps is not None:
        files["side_by_side.png"] = compared.maps.png
    if len(compared.categories):
        files["categories.csv"] = compared.categories.to_csv(index=False)
    try:
        for name, content in files.items():
            write_whole(output / name, content)
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
