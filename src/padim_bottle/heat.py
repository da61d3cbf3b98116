"""Anomaly maps as pictures: one colour scale, one way to lay a map over a photo, to outline, and to write the file."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import matplotlib
import numpy as np
from numpy.typing import NDArray

from padim_bottle.files import write_whole

Picture = NDArray[np.uint8]
Colour = tuple[int, int, int]

# Of Okabe and Ito's palette: told apart with any colour vision, and not found on a bottle.
TRUTH: Colour = (86, 180, 233)
PREDICTION: Colour = (240, 228, 66)
DARK: Colour = (27, 27, 31)

_MOST_NUMBERS = 9

COLOURMAP: Picture = matplotlib.colormaps["inferno"](np.arange(256), bytes=True)[:, :3].copy()
"""RGB of 256 scores from low to high; perceptually uniform, and dark where nothing is wrong."""
COLOURMAP.flags.writeable = False


@dataclass(frozen=True)
class HeatmapScale:
    """One colour scale for all anomaly maps of a run, so that colours can be compared between its pictures.

    Attributes:
        low: raw score drawn in the darkest colour.
        high: raw score drawn in the brightest colour; if it equals ``low``, all maps are dark.
        threshold: raw score from which a pixel is called anomalous, marked in the colour bar; None if
            unknown.

    Raises:
        ValueError: if a limit is not finite or ``high`` is less than ``low``.
    """

    low: float
    high: float
    threshold: float | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low <= self.high):
            raise ValueError(f"a heatmap needs finite limits, low <= high, not {self.low} and {self.high}")

    @classmethod
    def from_threshold(cls, pixel_threshold: float, typical: float) -> "HeatmapScale":
        """Put the threshold at 40 % of the scale: normal pixels stay dark and defects have room to differ.

        Args:
            pixel_threshold: raw score from which a pixel is called anomalous.
            typical: raw score of a typical normal pixel, drawn in the darkest colour.
        """
        span = pixel_threshold - typical
        if span <= 0:  # a degenerate model; its pictures may help to find out why
            span = max(abs(pixel_threshold), 1.0)
        low = pixel_threshold - span
        return cls(low, low + 2.5 * span, pixel_threshold)

    def colours(self, scores: NDArray[np.floating]) -> Picture:
        """Return the RGB colours ``(..., 3)`` of raw scores ``(...)``; scores off the scale are clipped."""
        scores = np.clip(np.asarray(scores, dtype=np.float64), self.low, self.high)
        level = (scores - self.low) / max(self.high - self.low, np.finfo(np.float64).tiny)
        return COLOURMAP[np.rint(level * 255).astype(np.uint8)]


def overlay(photo: Picture, heat: Picture) -> Picture:
    """Lay the colours of a map over a photo in grey; both (h, w, 3)."""
    grey = cv2.cvtColor(cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return np.asarray(cv2.addWeighted(grey, 0.35, heat, 0.65, 0), np.uint8)


def draw_outline(picture: Picture, mask: NDArray[np.bool_], colour: Colour, *, dashed: bool = False) -> None:
    """Draw the border of a mask (h, w) into a picture (h, w, 3), with a dark edge that keeps it visible on white."""
    unit = _unit(picture)
    contours: Any = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)[0]
    line = max(1, round(2 * unit))
    if dashed:
        dash, gap = round(7 * unit), round(6 * unit)
        contours = [c[i : i + dash] for c in contours for i in range(0, len(c), dash + gap)]
    for thickness, ink in ((line + 2, DARK), (line, colour)):
        cv2.polylines(picture, contours, not dashed, ink, thickness, cv2.LINE_AA)


def draw_numbers(picture: Picture, boxes: Sequence[tuple[int, int, int, int]], colour: Colour) -> None:
    """Number boxes (left, top, width, height) in a picture (h, w, 3), the first few; a single one needs no number."""
    unit = _unit(picture)
    for number, (left, top, _, _) in enumerate(boxes[:_MOST_NUMBERS] if len(boxes) > 1 else (), 1):
        at = max(0, left - round(3 * unit)), max(round(12 * unit), top - round(4 * unit))
        for thickness, ink in ((4, DARK), (1, colour)):
            width = max(1, round(thickness * unit))
            cv2.putText(picture, str(number), at, cv2.FONT_HERSHEY_SIMPLEX, 0.45 * unit, ink, width, cv2.LINE_AA)


def _unit(picture: Picture) -> float:
    """Return by what lines and letters grow with a picture."""
    return min(picture.shape[:2]) / 256


def write_png(path: Path, array: Picture) -> None:
    """Write a picture as ``encode_png`` takes it; the file appears whole or not at all.

    Folders that are missing are made. An existing file is replaced.

    Raises:
        ValueError: as ``encode_png``.
        OSError: if the file cannot be written.
    """
    write_whole(Path(path), encode_png(array))


def encode_png(array: Picture) -> bytes:
    """Return a grey ``(H, W)`` or RGB ``(H, W, 3)`` uint8 picture as a PNG file: the same bytes for the same picture.

    Raises:
        ValueError: if the array is no such picture.
    """
    if array.dtype != np.uint8 or not (array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3)):
        raise ValueError(f"a picture is uint8 (H, W) or (H, W, 3), not {array.dtype} {array.shape}")
    bgr = cv2.cvtColor(array, cv2.COLOR_RGB2BGR) if array.ndim == 3 else array
    # One fixed filter is nearly twice as fast as the default and files are hardly larger.
    settings = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP]
    _, encoded = cv2.imencode(".png", bgr, settings)
    return bytes(encoded)
