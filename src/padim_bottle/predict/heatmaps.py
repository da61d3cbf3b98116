"""Heatmaps and masks beside the verdicts, at each photo's own size."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from padim_bottle.data.images import read_image
from padim_bottle.errors import DISK_FULL, UserError
from padim_bottle.evaluation.regions import find_regions
from padim_bottle.heat import PREDICTION, HeatmapScale, draw_numbers, draw_outline, overlay, write_png
from padim_bottle.predict.predictor import ImagePrediction


class Pictures:
    """Writes ``<photo>_heatmap.png`` and ``<photo>_mask.png``, in the folders of the photos as far as they differ.

    Args:
        folder: where they are written.
        photos: all photos there are; empty where they are not known yet: names then keep the photos' suffixes.
        root: folder of the photos; the deepest that holds them all if not given.
        read: reads a photo as the model does.
    """

    def __init__(
        self,
        folder: Path,
        photos: Sequence[Path] = (),
        root: Path | None = None,
        read: Callable[[Path], NDArray[np.uint8]] = read_image,
    ) -> None:
        self.folder = folder
        self.read = read
        absolute = [Path(os.path.abspath(photo)) for photo in photos]  # noqa: PTH100 - links stay as they were named
        parents = [photo.parent for photo in absolute] if root is None else [os.path.abspath(root)]  # noqa: PTH100
        self.root = Path(os.path.commonpath(parents))
        self.taken = Counter(photo.with_suffix("") for photo in absolute)

    def write(self, path: Path, outcome: ImagePrediction | UserError, say: Callable[[str], None]) -> None:
        """Draw a photo that was judged, which is read once more, or say why that cannot be done.

        Raises:
            OSError: the disk is full.
        """
        if isinstance(outcome, UserError):
            return
        try:
            photo = self.read(path)
        except UserError as error:
            say(f"no pictures: {error}")
            return
        path = Path(os.path.abspath(path))  # noqa: PTH100
        # a.png and a.jpg in one folder keep their suffixes.
        name = path.stem if self.taken[path.with_suffix("")] == 1 else path.name
        place = self.folder / path.parent.relative_to(self.root)
        heatmap, mask = draw(photo, outcome)
        try:
            write_png(place / f"{name}_heatmap.png", heatmap)
            write_png(place / f"{name}_mask.png", mask)
        except OSError as error:
            if error.errno in DISK_FULL:
                raise
            say(f"no pictures: Cannot write those of {path} to {place}: {error.strerror}.")


def check_place(output: Path, folders: Iterable[Path]) -> None:
    """Refuse to write pictures into a folder whose photos are judged.

    Raises:
        UserError: the next run would judge its own pictures.
    """
    for folder in folders:
        if folder.is_dir() and output.resolve().is_relative_to(folder.resolve()):
            raise UserError(
                f"{output} lies in {folder}, whose photos are judged: its pictures would be judged too. Choose another "
                "folder."
            )


def draw(photo: NDArray[np.uint8], prediction: ImagePrediction) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the heatmap over the photo (h, w, 3), with its regions outlined, and the mask (h, w), 255 where anomalous.

    Both are of the photo's own size.
    """
    height, width = photo.shape[:2]
    shrinks = height < prediction.anomaly_map.shape[0]
    anomaly_map: Any = cv2.resize(
        prediction.anomaly_map, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    )
    # Normalised: the threshold is at 0.5 and a typical good pixel at 0.25.
    heatmap = overlay(photo, HeatmapScale.from_threshold(0.5, 0.25).colours(anomaly_map))
    # Of which nothing is lost where it gets smaller.
    way = cv2.INTER_AREA if shrinks else cv2.INTER_NEAREST
    mask: Any = cv2.resize(prediction.mask.astype(np.float32), (width, height), interpolation=way) > 0
    if mask.any() and mask.shape != prediction.mask.shape:
        # The border follows the map, not the model's coarser pixels, which a region keeps that the resizing lost.
        labels, _ = ndimage.label(mask, structure=np.ones((3, 3)))
        lowest = prediction.anomaly_map[prediction.mask].min()
        mask = anomaly_map >= min(lowest, prediction.pixel_threshold or lowest)
        mask |= ~np.isin(labels, [0, *np.unique(labels[mask])])
    draw_outline(heatmap, mask, PREDICTION)
    regions = find_regions(prediction.anomaly_map, prediction.mask, (height, width))
    draw_numbers(heatmap, [region.box for region in regions], PREDICTION)
    return heatmap, (mask * 255).astype("uint8")
