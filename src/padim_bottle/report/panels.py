"""Result pictures: what the camera saw, what is true, what the model scored and what it decided.

Nothing here keeps state, so pictures can be drawn in a pool of threads.
"""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from padim_bottle.errors import UserError
from padim_bottle.evaluation.regions import find_regions
from padim_bottle.files import write_whole
from padim_bottle.heat import (
    DARK,
    PREDICTION,
    TRUTH,
    Colour,
    HeatmapScale,
    Picture,
    draw_numbers,
    draw_outline,
    overlay,
)

_INK: Colour = (232, 232, 236)
_FAINT: Colour = (150, 150, 158)
_MIN_PANEL = 224  # pixels; titles do not fit in less
_STRIP_HEIGHT = 256  # pixels; as much as the report shows
_JPEG_QUALITY = 85


class Panels(NamedTuple):
    """What is shown of an image: RGB, uint8 ``(h, w, 3)``, all of one size."""

    photograph: Picture
    truth: Picture
    heat: Picture
    decision: Picture
    truth_title: str


def draw_panels(
    image: Picture,
    anomaly_map: NDArray[np.float32],
    mask: NDArray[np.bool_] | None,
    predicted_mask: NDArray[np.bool_],
    scale: HeatmapScale,
    area: NDArray[np.bool_] | None = None,
) -> Panels:
    """Draw what the camera saw, what is true, what the model scored and what it decided.

    Ground truth is outlined by a dashed blue line, the prediction by a solid yellow one; several regions of it are
    numbered by falling largest value.

    Args:
        image: RGB, uint8 ``(h, w, 3)``; resized to the size of the map.
        anomaly_map: raw scores, ``(H, W)``, without NaN.
        mask: ground truth, bool ``(H, W)``; all False for a good image, None if it is not known.
        predicted_mask: the pixels called anomalous, bool ``(H, W)``.
        scale: the run's colour scale.
        area: the pixels that count, bool ``(H, W)``; the others are drawn darker. None: all do.

    Returns:
        Panels of the size of the map, times a whole number if that is small.

    Raises:
        ValueError: if the map holds NaN.
    """
    if np.isnan(anomaly_map).any():
        raise ValueError("anomaly_map holds NaN")
    zoom = math.ceil(_MIN_PANEL / min(anomaly_map.shape))
    height, width = anomaly_map.shape[0] * zoom, anomaly_map.shape[1] * zoom
    way = cv2.INTER_AREA if image.shape[0] > height else cv2.INTER_LINEAR
    image = np.asarray(cv2.resize(image, (width, height), interpolation=way), np.uint8)
    if area is not None:
        image = np.where(_enlarged(area, zoom)[..., None], image, image // 3)
    regions = find_regions(anomaly_map, predicted_mask, (height, width))
    predicted_mask = _enlarged(predicted_mask, zoom)
    heat = cv2.resize(scale.colours(anomaly_map), (width, height), interpolation=cv2.INTER_LINEAR)
    decision = image.copy()
    decision[predicted_mask] = (0.8 * image[predicted_mask] + 0.2 * np.array(PREDICTION)).astype(np.uint8)
    draw_outline(decision, predicted_mask, PREDICTION)
    if mask is None:
        truth, title = np.full_like(image, 45), "Ground truth: not known"
    else:
        truth, title = image.copy(), "Ground truth" if mask.any() else "Ground truth: no defect"
        for panel in (truth, decision):
            draw_outline(panel, _enlarged(mask, zoom), TRUTH, dashed=True)
    draw_numbers(decision, [region.box for region in regions], PREDICTION)
    return Panels(image, truth, overlay(image, np.asarray(heat, np.uint8)), decision, title)


def lay_out(panels: Panels, scale: HeatmapScale, caption: str) -> Picture:
    """Lay the panels out side by side, with titles, the colour bar of the scale and a line of text below them."""
    height, width = panels.photograph.shape[:2]
    unit = min(height, width) / 256  # line widths and letters grow with the panels
    margin, top, below, bar = round(8 * unit), round(24 * unit), round(30 * unit), round(10 * unit)
    lefts = [margin + i * (width + margin) for i in range(3)]
    bar_left = lefts[2] + width + margin // 2
    lefts.append(bar_left + bar + round(38 * unit) + margin)
    canvas = np.empty((top + height + below, lefts[3] + width + margin, 3), dtype=np.uint8)
    canvas[:] = DARK
    for left, panel in zip(lefts, panels[:4], strict=True):
        canvas[top : top + height, left : left + width] = panel
    canvas[top : top + height, bar_left : bar_left + bar] = scale.colours(np.linspace(scale.high, scale.low, height))[
        :, None
    ]
    page = Image.fromarray(canvas)
    pen = ImageDraw.Draw(page)
    font, small = ImageFont.load_default(13 * unit), ImageFont.load_default(10.5 * unit)
    for left, title in zip(lefts, ("Image", panels.truth_title, "Anomaly map", "Prediction"), strict=True):
        pen.text((left, top - 7 * unit), title, _INK, font, anchor="ls")
    _key(pen, lefts[1] + width, top, ((0, 7), (10.5, 17.5), (21, 28)), TRUTH, unit)
    _key(pen, lefts[3] + width, top, ((0, 28),), PREDICTION, unit)
    _label_bar(pen, (bar_left, top, bar_left + bar, top + height), scale, small, unit)
    pen.text((lefts[0], top + height + 20 * unit), caption, _INK, font, anchor="ls")
    return np.array(page)


def write_strip(path: Path, panels: Panels) -> None:
    """Write photograph, anomaly map and decision side by side as a JPEG, which figures and report use.

    Raises:
        OSError: if the file cannot be written.
    """
    strip = np.hstack([panels.photograph, panels.heat, panels.decision])
    share = min(1.0, _STRIP_HEIGHT / len(strip))
    size = 3 * round(strip.shape[1] * share / 3), round(len(strip) * share)
    write_whole(path, encode_jpeg(Image.fromarray(strip).resize(size, Image.Resampling.BOX)))


def read_strip(path: Path) -> Image.Image:
    """Read what ``write_strip`` wrote.

    Raises:
        UserError: it is no such picture.
    """
    return _opened_strip(path)[0]


def strip_size(path: Path) -> tuple[int, int]:
    """Return width and height of a strip; it is decoded at an eighth of them, which tells whether it is whole.

    Raises:
        UserError: as ``read_strip``.
    """
    return _opened_strip(path, small=True)[1]


def _opened_strip(path: Path, *, small: bool = False) -> tuple[Image.Image, tuple[int, int]]:
    try:
        strip = Image.open(path)
        size = strip.size
        if small:
            strip.draft("RGB", (1, 1))
        strip = strip.convert("RGB")  # type: ignore[assignment]
    except OSError as error:
        raise UserError(f"{path} is no picture: it was damaged.") from error
    if size[0] % 3:
        raise UserError(f"{path} is no picture of this run: its panels are not of one size.")
    return strip, size


def encode_jpeg(picture: Image.Image) -> bytes:
    """Return a picture as a JPEG file."""
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=_JPEG_QUALITY)
    return buffer.getvalue()


def _enlarged(mask: NDArray[np.bool_], zoom: int) -> NDArray[np.bool_]:
    return mask.repeat(zoom, axis=0).repeat(zoom, axis=1)


def _key(
    pen: ImageDraw.ImageDraw,
    right: float,
    top: float,
    dashes: Sequence[tuple[float, float]],
    colour: Colour,
    unit: float,
) -> None:
    """Draw a sample of an outline at the right end of a panel's title."""
    middle = top - 11 * unit
    for start, end in dashes:
        line = (right - (28 - start) * unit, middle, right - (28 - end) * unit, middle)
        pen.line(line, colour, width=max(1, round(2 * unit)))


def _label_bar(
    pen: ImageDraw.ImageDraw,
    box: tuple[float, float, float, float],
    scale: HeatmapScale,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    unit: float,
) -> None:
    """Write the limits beside the colour bar and mark the threshold in it."""
    left, top, right, bottom = box
    text_left = right + 5 * unit
    pen.text((text_left, top), f"{scale.high:.3g}", _FAINT, font, anchor="lt")
    pen.text((text_left, bottom), f"{scale.low:.3g}", _FAINT, font, anchor="lb")
    if scale.threshold is not None and scale.low < scale.threshold < scale.high:
        share = (scale.threshold - scale.low) / (scale.high - scale.low)
        tick = bottom - share * (bottom - top)
        pen.line((left, tick, right + 3 * unit, tick), _INK, width=max(1, round(1.5 * unit)))
        pen.text((text_left, tick), f"{scale.threshold:.3g}", _INK, font, anchor="lm")
