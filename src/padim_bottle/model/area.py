"""The area of a photo that counts: a picture, white where it does."""

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from padim_bottle.errors import UserError

# Shares of pixels that are neither black nor white: soft edges have few, a photo has many.
_SOFT = 0.1


def read_area(path: Path) -> NDArray[np.bool_]:
    """Read a picture (h, w), True where it is white; soft edges are cut at half.

    Raises:
        UserError: it is missing, no picture, in colour, no picture of black and white, or black.
    """
    try:
        content = np.frombuffer(path.read_bytes(), np.uint8)
    except OSError as error:
        raise UserError(f"Cannot read the region {path}: {error.strerror}.") from error
    pixels = cv2.imdecode(content, cv2.IMREAD_UNCHANGED) if len(content) else None
    how = "paint white what counts and black what does not"
    if pixels is None:
        raise UserError(f"The region {path} is no picture that can be read: save it as PNG, and {how}.")
    if pixels.ndim == 3:
        if (pixels[..., :3].max(axis=-1) != pixels[..., :3].min(axis=-1)).any():
            raise UserError(f"The region {path} is in colour: {how}.")
        if pixels.shape[-1] == 4 and (pixels[..., 3] != pixels[..., 3].max()).any():
            raise UserError(f"The region {path} has transparent parts: {how}.")
        pixels = pixels[..., 0]
    level = pixels / {1: 255.0, 2: 65535.0}.get(pixels.itemsize, 1.0)
    if ((level > 0.1) & (level < 0.9)).mean() > _SOFT:
        raise UserError(f"The region {path} is not black and white: {how}.")
    area: NDArray[np.bool_] = level >= 0.5
    if not area.any():
        raise UserError(f"The region {path} is all black, so nothing would count: {how}.")
    return area


def check_aspect(area: NDArray[np.bool_], photo: tuple[int, int], path: Path) -> None:
    """Raise a UserError where an area's picture has another aspect than a photo of this width and height."""
    (height, width), (photo_width, photo_height) = area.shape, photo
    if abs(width * photo_height / (height * photo_width) - 1) > 0.01:
        raise UserError(
            f"The region {path} has {width} x {height} pixels, and photos have {photo_width} x {photo_height}: any "
            "size will do, but of the same aspect."
        )


def resize_area(area: NDArray[np.bool_], size: tuple[int, int], path: Path) -> NDArray[np.bool_]:
    """Return an area at another height and width: what is half within it or more.

    Raises:
        UserError: nothing of it is left.
    """
    resized = cv2.resize(area.astype(np.float32), size[::-1], interpolation=cv2.INTER_AREA) >= 0.5
    if not resized.any():
        raise UserError(f"The region {path} is too small: nothing of it is left at {size[0]} x {size[1]} pixels.")
    return np.asarray(resized)


def touched(area: NDArray[np.bool_], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return which positions (h, w) of a grid over an area (H, W) hold any of it."""
    rows, columns = np.nonzero(area)
    positions = np.zeros(shape, dtype=bool)
    positions[rows * shape[0] // area.shape[0], columns * shape[1] // area.shape[1]] = True
    return positions
