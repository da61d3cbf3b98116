"""Figures of images: what good ones look like to the model, the hardest ones, the two cases that this began from."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.backend_bases import RendererBase
from matplotlib.figure import Figure

from padim_bottle.heat import Picture
from padim_bottle.report.panels import read_strip
from padim_bottle.report.score_figures import Drawing, plain
from padim_bottle.runs.run import Run

_WIDTH = 8  # inches
_PIXELS = 120  # an inch


def draw_calibration_maps(run: Run) -> Drawing:
    """Draw mean and spread, over the training images, of what is scored: leave-one-out maps, or coarsest distances."""
    mean, std = run.arrays.get("scored_mean"), run.arrays.get("scored_std")
    if mean is None or not mean.size:
        return None
    figure = Figure(figsize=(8, 3.5))
    panels = figure.subplots(
        1, 2, gridspec_kw={"left": 0.02, "right": 0.93, "wspace": 0.22, "bottom": 0.04, "top": 0.9}
    )
    calibration = run.metrics["calibration"] or {}
    what = "anomaly map" if calibration.get("image_score", "map") == "map" else "distances"
    for axes, pixels, title in zip(panels, (mean, std), ("mean", "standard deviation"), strict=True):
        image = axes.imshow(pixels, cmap="inferno", interpolation="nearest")
        axes.set_title(f"Good images: {title} of the {what}", fontsize=10, y=1.0)
        axes.set_axis_off()
        figure.colorbar(image, ax=axes, fraction=0.046, pad=0.03).ax.tick_params(labelsize=8)
    used = calibration.get("position_calibration")
    caption = (
        f"The {what if what == 'distances' else 'anomaly maps'} of the {len(run.calibration_scores)} training images"
        f"{' at the coarsest grid' if what == 'distances' else ''}, each left out of the model that it is measured by. "
        "Bright on the left: where good images always look a little anomalous. Bright on the right: where "
        "they differ from one another, such as at reflections. "
    )
    caption += (
        "An image's score is the largest value in units of this spread, so what varies among good images weighs less."
        if used
        else "This run's scores do not use it: they are the largest value as it is."
    )
    return "What good images look like to the model", caption, figure


def draw_hardest_images(run: Run) -> Drawing:
    """Draw the four lowest-scoring defective images and the four highest-scoring good ones."""
    drawable = run.predictions[run.predictions["strip"].notna()]
    defective, good = drawable[drawable["label"]].head(4), drawable[~drawable["label"]][::-1].head(4)
    rows = [row for row in (defective, good) if len(row)]
    if not rows:
        return None
    tiles = [[_decision_and_map(*_panels(run, case.strip)) for case in row.itertuples()] for row in rows]
    texts = [[_describe(run, case) for case in row.itertuples()] for row in rows]
    figure = _mosaic(tiles, texts)
    words = {True: "defective images with the lowest scores", False: "good images with the highest scores"}
    kinds = [words[bool(row["label"].iloc[0])] for row in rows]
    caption = (
        f"The {' (first row) and the '.join(kinds)}: the ones to look at for what the model is blind to and for what "
        "alarms it. Left, the photograph with the true defect (dashed blue) and the predicted one (solid yellow); "
        "right, the anomaly map, on the colour scale of the whole run."
    )
    return "The hardest images", caption, figure


def draw_side_by_side(runs: Mapping[str, Run], count: int = 3) -> Drawing:
    """Draw the maps of several models on the same test images: the hardest defects and the hardest good images.

    An image is as hard as its lowest rank with any of the models; scores of different models have no common scale.

    Args:
        runs: runs on the same test images, by the name of the model.
        count: of defective and of good images.
    """
    # Every run has the strip of an image at the same place.
    drawable = [run.predictions[run.predictions["strip"].notna()] for run in runs.values()]
    tables = [table.set_index("strip", drop=False) for table in drawable]
    tiles, texts = [], []
    for label in (True, False):
        # Rank 1: the defective image that scores lowest, the good one that scores highest.
        chosen = [table.loc[table["label"] == label, "score"].rank(ascending=label) for table in tables]
        ranks = pd.concat(chosen, axis=1, join="inner")
        order = pd.DataFrame({"any": ranks.min(axis=1), "all": ranks.mean(axis=1)}).sort_values(["any", "all"])
        hardest = order.index[:count]
        for (name, run), table in zip(runs.items(), tables, strict=True):
            cases = list(table.loc[hardest].itertuples(index=False))
            if cases:
                tiles.append([_decision_and_map(*_panels(run, case.strip)) for case in cases])
                texts.append([f"{plain(name)}: {_describe(run, case)}" for case in cases])
    if not tiles:
        return None
    caption = (
        f"The defective images that score lowest and the good images that score highest with {' or '.join(runs)}, each "
        "with every model. Left, the photograph with the true defect (dashed blue) and the predicted one (solid "
        "yellow); right, the anomaly map. Scores of different models have no common scale, so one rule makes the "
        "colours comparable: the darkest is each model's typical normal pixel, and its pixel threshold lies at 40 % "
        "of the scale."
    )
    return "The same images, model by model", caption, _mosaic(tiles, texts)


def draw_began_with(run: Run) -> Drawing:
    """Draw a found 'broken_large' and a found 'contamination': of each type the image with the median score."""
    drawable = run.predictions[run.predictions["strip"].notna()]
    types = [drawable[drawable["defect_type"] == defect] for defect in ("broken_large", "contamination")]
    if any(of_type.empty for of_type in types):
        return None
    cases = [of_type.iloc[len(of_type) // 2] for of_type in types]
    rows = [_panels(run, case["strip"]) for case in cases]
    figure = _mosaic(rows, [[_describe(run, case), "anomaly map", "true defect and prediction"] for case in cases])
    sentences = []
    for case in cases:
        sentence = f"{case['defect_type']}/{case['image']}"
        if run.threshold is not None:
            sentence += " is found" if case["score"] >= run.threshold else " is missed"
        if not np.isnan(case["covered"]):
            sentence += (
                f": {case['covered']:.0%} of the defect's pixels are within the predicted outline, and of all the "
                f"others, reflections included, {case['spilled']:.1%}"
            )
        sentences.append(sentence)
    caption = (
        "The two cases that this experiment began from: a large break, and contamination between bright reflections "
        "that are no defect. Of each type the image whose score is the median is shown, whatever it looks like; the "
        f"true defect is dashed blue, the predicted one solid yellow. {'. '.join(sentences)}."
    )
    return "A large break, and contamination among reflections", caption, figure


def _describe(run: Run, case: Any) -> str:
    """Two lines below a picture: which image, and what the model said."""
    text = f"{plain(case.defect_type)}/{plain(case.image)}\nscore {case.score:.2f}"
    if not np.isnan(case.p_value):
        text += f", p = {case.p_value:.3f}"
    if run.threshold is not None:
        called = case.score >= run.threshold
        verdict = ("found" if called else "missed") if case.label else ("false alarm" if called else "passed")
        text += f": {verdict}"
    return text


def _panels(run: Run, strip: Path) -> list[Picture]:
    """Return photograph, anomaly map and decision."""
    return np.hsplit(np.asarray(read_strip(run.folder / strip)), 3)


def _decision_and_map(photograph: Picture, heat: Picture, decision: Picture) -> Picture:
    return np.hstack([decision, np.full((len(heat), 4, 3), 255, dtype=np.uint8), heat])


def _mosaic(tiles: Sequence[Sequence[Picture]], texts: Sequence[Sequence[str]]) -> Figure:
    """Lay pictures of one size out in rows, with text beneath each, as one image: that is faster."""
    columns = max(map(len, tiles))
    # As many pixels as are printed, so that Matplotlib need not resize them.
    page_width = _WIDTH * _PIXELS
    gap = round(0.03 * page_width / columns)
    width = (page_width - (columns - 1) * gap) // columns
    height = round(tiles[0][0].shape[0] * width / tiles[0][0].shape[1])
    way = cv2.INTER_AREA if width < tiles[0][0].shape[1] else cv2.INTER_LINEAR
    below = round(0.34 * page_width / _WIDTH)  # two lines of text
    page = np.full((len(tiles) * (height + below), page_width, 3), 255, dtype=np.uint8)
    figure = Figure(figsize=(_WIDTH, _WIDTH * page.shape[0] / page_width))
    axes = figure.add_axes((0, 0, 1, 1))
    for i, row in enumerate(tiles):
        for j, tile in enumerate(row):
            top, left = i * (height + below), j * (width + gap)
            page[top : top + height, left : left + width] = cv2.resize(tile, (width, height), interpolation=way)
            axes.text(left, top + height + gap / 2, texts[i][j], fontsize=7, va="top", linespacing=1.3)
    axes.set(xlim=(-0.5, page_width - 0.5), ylim=(len(page) - 0.5, -0.5))
    axes.add_artist(_Pixels(page))
    axes.set_axis_off()
    return figure


class _Pixels(Artist):
    """A picture that fills a figure pixel by pixel, where Matplotlib's own are resized at 32 bytes a pixel."""

    def __init__(self, picture: Picture) -> None:
        super().__init__()
        # From the lowest row on. Older versions of Matplotlib take no view.
        self._rgba = np.ascontiguousarray(cv2.cvtColor(picture, cv2.COLOR_RGB2RGBA)[::-1])

    def draw(self, renderer: RendererBase) -> None:
        renderer.draw_image(renderer.new_gc(), 0, 0, self._rgba)
