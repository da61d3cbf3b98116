"""Finished runs to compare, and what files and pages show of them: each is computed and drawn once."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from matplotlib.figure import Figure

from padim_bottle.compare.figure import draw_comparison
from padim_bottle.compare.maps import draw_maps
from padim_bottle.compare.markdown import display_names, verdicts
from padim_bottle.compare.statistics import paired_differences
from padim_bottle.report.gallery import render
from padim_bottle.runs.table import FinishedRuns, read_runs


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
    def verdicts(self) -> list[str]:
        """What the seeds tell of each pair of experiments, a sentence each."""
        return verdicts(paired_differences(self.table), self.names)
