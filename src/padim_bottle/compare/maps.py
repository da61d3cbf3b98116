"""The maps of several experiments on the same images: ``side_by_side.png``."""

from pathlib import Path

import pandas as pd

from padim_bottle.compare.markdown import display_names
from padim_bottle.report.photo_figures import draw_side_by_side
from padim_bottle.report.score_figures import Drawing
from padim_bottle.runs.run import Run

# More do not fit on a page.
_MODELS = 4


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
