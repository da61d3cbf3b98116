"""Finished runs to compare, and what files and pages show of them: each is computed and drawn once."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from padim_bottle.compare.categories import by_category
from padim_bottle.compare.figure import draw_comparison
from padim_bottle.compare.markdown import display_names, verdicts
from padim_bottle.compare.statistics import paired_differences
from padim_bottle.report.gallery import render
from padim_bottle.report.photo_figures import draw_side_by_side
from padim_bottle.report.score_figures import Drawing
from padim_bottle.runs.run import Run
from padim_bottle.runs.table import FinishedRuns, read_runs

# More do not fit on a page.
_MODELS = 4


class SideBySide(NamedTuple):
    """The maps of several experiments as a PNG, with the words that belong to it."""

    title: str
    caption: str
    png: bytes


class Comparison:
    """The experiments of some folders.

    Args:
        folders: experiments' folders, ``<results>/<experiment>``.

    Raises:
        UserError: a folder that is not there or that holds no finished run.
    """

    def __init__(self, folders: Sequence[str | Path]) -> None:
        self.folders = folders
        self.runs: FinishedRuns = read_runs(folders)
        self.table: pd.DataFrame = self.runs.table
        self.names = display_names(self.table)

    @cached_property
    def figure(self) -> Figure:
        """See ``draw_comparison``."""
        return draw_comparison(self.table)

    @cached_property
    def maps(self) -> SideBySide | None:
        """See ``draw_maps``."""
        drawing = draw_maps(self.table)
        return None if drawing is None else SideBySide(*drawing[:2], render(drawing[2], "png"))

    @cached_property
    def categories(self) -> pd.DataFrame:
        """See ``by_category``."""
        return by_category(self.table)

    @cached_property
    def differences(self) -> pd.DataFrame:
        """See ``paired_differences``."""
        return paired_differences(self.table)

    @cached_property
    def verdicts(self) -> list[str]:
        """What the seeds tell of each pair of experiments, a sentence each."""
        return verdicts(self.differences, self.names)


def draw_maps(table: pd.DataFrame) -> Drawing:
    """Draw the hardest test images of the experiments that share them, by the first run of each.

    Args:
        table: finished runs, see ``read_runs``.

    Returns:
        Title, caption and figure; ``None`` where fewer than two experiments share images and kept their pictures.
    """
    first = table.drop_duplicates("experiment")
    kept = first["folder"].map(lambda folder: any(Path(folder).glob("figures/panels/*/*")))
    first = first[kept & first["data_fingerprint"].notna()]
    if len(first):
        first = first[first["data_fingerprint"] == first["data_fingerprint"].iloc[0]]
    if len(first) < 2:
        return None
    names = display_names(table)
    return draw_side_by_side(
        {names[row.experiment]: Run.read(Path(row.folder)) for row in first.head(_MODELS).itertuples()}
    )
