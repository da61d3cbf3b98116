"""Photos of the page: uploaded ones, good ones to pick from, and what was drawn on them."""

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from padim_bottle.data.images import read_image, read_size
from padim_bottle.data.listing import find_photos
from padim_bottle.errors import UserError
from padim_bottle.runs.run import read_csv

MAX_PIXELS = 50_000_000
"""More than most cameras have; decoded, it is 150 MB."""

MAX_LAYERS, MAX_LAYER_PIXELS = 4, 5_000_000
"""The page has one layer, of the size of its board: 512 pixels, times three on fine screens."""

Picture = NDArray[np.uint8]


def read_upload(path: Path, name: str, read: Callable[[Path], Picture] = read_image) -> Picture:
    """Read an uploaded photo.

    Args:
        path: where it was stored.
        name: what its owner calls it.
        read: as the model reads it.

    Returns:
        RGB, uint8 (h, w, 3).

    Raises:
        UserError: it is no image, damaged, or has too many pixels.
    """
    try:
        _check_size(path)
        return read(path)
    except UserError as error:
        raise UserError(str(error).replace(str(path), name)) from None


def read_layers(paths: Sequence[Path]) -> list[Picture]:
    """Decode what was drawn; numbers and sizes are looked at before.

    Args:
        paths: image files.

    Returns:
        RGBA, uint8 (h, w, 4) each.

    Raises:
        UserError: they are too many, too large or no images.
    """
    if len(paths) > MAX_LAYERS:
        raise UserError(f"The drawing has {len(paths)} layers, more than {MAX_LAYERS}: clear it and draw again.")
    return list(map(_read_layer, paths))


def _read_layer(path: Path) -> Picture:
    try:
        with Image.open(path, formats=("PNG", "WEBP")) as image:
            if image.width * image.height > MAX_LAYER_PIXELS:
                raise UserError("The drawing is too large: clear it and draw again.")
            return np.array(image.convert("RGBA"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise UserError("The drawing cannot be read: clear it and draw again.") from None


def _check_size(path: Path) -> None:
    try:
        width, height = read_size(path)
        too_large = width * height > MAX_PIXELS
    except UserError as error:
        # Pillow refuses to open what is larger still.
        too_large = isinstance(error.__context__, Image.DecompressionBombError)
        if not too_large:
            raise
    if too_large:
        raise UserError(f"{path} has more than {MAX_PIXELS / 1e6:.0f} million pixels, too many here: make it smaller.")


def find_good_photos(models: Sequence[Path], folder: Path | None = None) -> list[Path]:
    """Return the photos of a folder, or without one the good test photos of the first model whose run has some.

    Args:
        models: as ``load_predictor`` takes them; a run is known by its ``predictions.csv``.
        folder: whose photos to take instead.

    Raises:
        UserError: there are none.
    """
    if folder is not None:
        return find_photos([str(folder)]).checked().photos
    runs = [run for run in map(_run_of, models) if run is not None]
    for run in runs:
        good = [path for path in _good_test_photos(run) if path.is_file()]
        if good:
            return good
    names = " or ".join(run.name for run in runs)
    reason = f"the good test photos of {names} are not on this machine" if runs else "no model lies in a run's folder"
    raise UserError(f"There are no photos to pick from, for {reason}: name a folder of photos with --images.")


def _run_of(model: Path) -> Path | None:
    """Return the folder of the run that a model, or an export of it, lies in."""
    path = model.resolve()
    return next((folder for folder in (path, *path.parents[:3]) if (folder / "predictions.csv").is_file()), None)


def _good_test_photos(run: Path) -> list[Path]:
    try:
        table = read_csv(run / "predictions.csv")
        return [Path(path) for path in table.loc[~table["label"].astype(bool), "image_path"]]
    except (OSError, ValueError, KeyError):
        return []


def shrink(photo: Picture, side: int) -> Picture:
    """Return a photo (h, w, 3) with sides of at most so many pixels."""
    height, width = photo.shape[:2]
    share = side / max(height, width)
    if share >= 1:
        return photo
    size = max(1, round(width * share)), max(1, round(height * share))
    return np.asarray(cv2.resize(photo, size, interpolation=cv2.INTER_AREA), np.uint8)


def draw_over(photo: Picture, layers: Sequence[Picture]) -> Picture:
    """Return a photo (h, w, 3) with drawings, RGBA (h', w', 4) of any size, laid over it; elsewhere it is unchanged."""
    drawn = Image.fromarray(photo)
    for layer in layers:
        drawing = Image.fromarray(layer).resize(drawn.size, Image.Resampling.BILINEAR)
        drawn.paste(drawing.convert("RGB"), mask=drawing.getchannel("A"))
    return np.array(drawn)
