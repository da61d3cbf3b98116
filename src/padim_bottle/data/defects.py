"""Synthetic anomalies in good photos: what a defect could look like where none is known.

Each is drawn within a box of the photo, in a region of irregular outline, and is where its mask says. An anomaly that
can hardly be seen, such as a warp of an even background, is drawn again elsewhere.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np
import torch
from anomalib.data.utils.generators import PerlinAnomalyGenerator
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
Mask = NDArray[np.bool_]

KINDS = ("perlin", "patch", "missing", "warp", "scratch")


@dataclass
class AnomalySettings:
    """What synthetic anomalies look like; lengths are shares of a photo's shorter side."""

    seed: int = 0
    kinds: list[str] = field(default_factory=lambda: list(KINDS))
    size: list[float] = field(default_factory=lambda: [0.05, 0.3])
    scratch_width: list[float] = field(default_factory=lambda: [0.004, 0.012])
    strength: list[float] = field(default_factory=lambda: [0.3, 1.0])


_ATTEMPTS = 30
# Grey levels by which the pixels of an anomaly must differ from the photo's, on average.
_VISIBLE = 10.0
# anomalib's Perlin noise has up to this many cells a side.
_PERLIN_CELLS = 32


def add_anomaly(photo: Picture, kind: str, settings: AnomalySettings, number: int) -> tuple[Picture, Mask]:
    """Return a copy of a photo with one anomaly, and where that is.

    Args:
        photo: (H, W, 3), RGB.
        kind: one of ``KINDS``. perlin: anomalib's Perlin noise, blended in. patch: another part of the photo.
            missing: the colour of the photo's border. warp: the photo, pushed aside. scratch: a thin curved line,
            lighter or darker.
        settings: sizes and strengths.
        number: of the photo; with ``settings.seed`` it decides everything random.

    Returns:
        The picture (H, W, 3) and the mask (H, W). A photo without any structure may show next to nothing.
    """
    rng = np.random.default_rng([settings.seed, number])
    height, width = photo.shape[:2]
    best: tuple[float, tuple[slice, slice], Picture, Mask] | None = None
    for _ in range(_ATTEMPTS):
        rows, columns = (_extent(rng, length, min(height, width), settings.size) for length in (height, width))
        mask = (
            _scratch(rng, rows, columns, min(height, width), settings)
            if kind == "scratch"
            else _blob(rng, rows, columns)
        )
        changed, mask = _DRAW[kind](rng, photo, (rows, columns), mask, _between(rng, settings.strength))
        difference = np.abs(changed.astype(np.int16) - photo[rows, columns]).mean(axis=2)[mask]
        contrast = float(difference.mean()) if len(difference) else 0.0
        if len(difference) and (best is None or contrast > best[0]):
            best = contrast, (rows, columns), changed, mask
        if contrast >= _VISIBLE:
            break
    picture, everywhere = photo.copy(), np.zeros((height, width), dtype=bool)
    if best is not None:
        _, box, changed, mask = best
        picture[box][mask] = changed[mask]
        everywhere[box] = mask
    return picture, everywhere


def _between(rng: np.random.Generator, limits: Sequence[float]) -> float:
    return float(rng.uniform(limits[0], limits[1]))


def _extent(rng: np.random.Generator, length: int, side: int, size: Sequence[float]) -> slice:
    """Choose where an anomaly lies along one axis."""
    extent = max(2, min(length, round(_between(rng, size) * side)))
    start = int(rng.integers(0, length - extent + 1))
    return slice(start, start + extent)


def _coordinates(rows: slice, columns: slice) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return y (h, 1) and x (1, w) from -1 to 1 within a box."""
    y, x = (np.arange(part.stop - part.start) for part in (rows, columns))
    return ((2 * y + 1) / len(y) - 1)[:, None], ((2 * x + 1) / len(x) - 1)[None]


def _blob(rng: np.random.Generator, rows: slice, columns: slice) -> Mask:
    """Draw an ellipse with a wavy outline that fills its box."""
    y, x = _coordinates(rows, columns)
    order = np.arange(2, 7)
    height, phase = rng.uniform(0, 0.3, 5) / order, rng.uniform(0, 2 * np.pi, 5)
    wave = (height * np.cos(order * np.arctan2(y, x)[..., None] + phase)).sum(axis=-1)
    return np.hypot(y, x) < 1 - height.sum() + wave


def _scratch(rng: np.random.Generator, rows: slice, columns: slice, side: int, settings: AnomalySettings) -> Mask:
    """Draw a thin line, bent once, from one corner of its box to the opposite one."""
    height, width = rows.stop - rows.start, columns.stop - columns.start
    start, end = np.zeros(2), np.array([width - 1, height - 1])
    if rng.random() < 0.5:
        start[1], end[1] = end[1], start[1]
    middle = (start + end) / 2 + rng.uniform(-0.3, 0.3, 2) * (width, height)
    t = np.linspace(0, 1, 24)[:, None]
    points = (1 - t) ** 2 * start + 2 * t * (1 - t) * middle + t**2 * end
    thickness = max(1, round(_between(rng, settings.scratch_width) * side))
    line = cv2.polylines(np.zeros((height, width), np.uint8), [np.rint(points).astype(np.int32)], False, 1, thickness)
    return line.astype(bool)


# Each of these returns what the photo shows within the box instead, and where.

Box = tuple[slice, slice]


def _perlin(rng: np.random.Generator, photo: Picture, box: Box, mask: Mask, strength: float) -> tuple[Picture, Mask]:
    crop = photo[box]
    height, width = mask.shape
    zoom = max(1.0, _PERLIN_CELLS / min(height, width))
    size = (round(width * zoom), round(height * zoom))
    enlarged = cv2.resize(crop, size, interpolation=cv2.INTER_LINEAR) if zoom > 1 else crop
    # anomalib's generator draws from torch's global generator, and when it is made, too.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(2**31)))
        generator = PerlinAnomalyGenerator(probability=1.0, blend_factor=strength)
        changed, noise = generator(torch.from_numpy(enlarged).permute(2, 0, 1).float() / 255)
    picture = np.rint(changed.permute(1, 2, 0).clamp(0, 1).numpy() * 255).astype(np.uint8)
    where = noise[0].numpy().astype(np.uint8)
    if zoom > 1:
        picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
        where = cv2.resize(where, (width, height), interpolation=cv2.INTER_NEAREST)
    return picture, mask & where.astype(bool)


def _patch(rng: np.random.Generator, photo: Picture, box: Box, mask: Mask, strength: float) -> tuple[Picture, Mask]:
    starts = [int(rng.integers(0, whole - part + 1)) for whole, part in zip(photo.shape, mask.shape, strict=False)]
    patch = photo[tuple(slice(start, start + part) for start, part in zip(starts, mask.shape, strict=True))]
    return _mix(photo[box], patch[:: rng.choice([-1, 1]), :: rng.choice([-1, 1])], strength), mask


def _missing(rng: np.random.Generator, photo: Picture, box: Box, mask: Mask, strength: float) -> tuple[Picture, Mask]:
    border = np.concatenate([photo[0], photo[-1], photo[:, 0], photo[:, -1]])
    colour = np.median(border, axis=0) + rng.normal(0, 2, (*mask.shape, 3))
    return _mix(photo[box], colour, 1.0), mask


def _warp(rng: np.random.Generator, photo: Picture, box: Box, mask: Mask, strength: float) -> tuple[Picture, Mask]:
    y, x = _coordinates(*box)
    falloff = np.clip(1 - y**2 - x**2, 0, 1) ** 2
    direction = rng.uniform(0, 2 * np.pi)
    push = strength * falloff / 2
    rows = (np.arange(mask.shape[0])[:, None] + push * np.sin(direction) * mask.shape[0]).astype(np.float32)
    columns = (np.arange(mask.shape[1])[None] + push * np.cos(direction) * mask.shape[1]).astype(np.float32)
    crop = np.ascontiguousarray(photo[box])
    warped = cv2.remap(crop, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    return np.asarray(warped, np.uint8), mask & (push > 0.02)


def _line(rng: np.random.Generator, photo: Picture, box: Box, mask: Mask, strength: float) -> tuple[Picture, Mask]:
    return _mix(photo[box], np.full(3, rng.choice([0.0, 255.0])), strength), mask


def _mix(under: Picture, over: np.ndarray, strength: float) -> Picture:
    return np.clip(np.rint(under + strength * (over.astype(np.float64) - under)), 0, 255).astype(np.uint8)


_DRAW: dict[str, Callable[[np.random.Generator, Picture, Box, Mask, float], tuple[Picture, Mask]]] = {
    "perlin": _perlin, "patch": _patch, "missing": _missing, "warp": _warp, "scratch": _line,
}  # fmt: skip
