"""Where an alarm is: the regions of its anomaly map, so that outline and verdict agree.

A photo that passes has no region. An alarm's pixels are those at or above the pixel threshold; where none reaches it,
the highest of its own map, ``1 - HIGHEST`` of them: an image score may be standardised by position, or come from a
coarser grid, and the pixel threshold is neither, so an alarm of the one may be none of the other. Normalising a map
keeps the order of its pixels, so raw and normalised maps have the same regions.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

HIGHEST = 0.998
"""Quantile of an alarm's own pixels from which they are outlined, where none reaches the pixel threshold."""


@dataclass(frozen=True)
class Region:
    """Connected pixels (8 neighbours) that are called anomalous.

    Attributes:
        box: left, top, width and height in pixels of the photo.
        area: in pixels of the photo.
        largest: value of the map in it.
        mean: value of the map in it.
    """

    box: tuple[int, int, int, int]
    area: int
    largest: float
    mean: float

    def as_dict(self) -> dict[str, Any]:
        """Return what JSON has of it."""
        return asdict(self)


def called_pixels(anomaly_map: NDArray[Any], anomalous: bool | None, threshold: float | None) -> NDArray[np.bool_]:
    """Return which pixels of a map (H, W) are called anomalous, (H, W).

    Args:
        anomaly_map: raw or normalised.
        anomalous: the verdict; ``None`` where there is none: then the threshold alone decides.
        threshold: of pixels, on the map's scale; ``None`` where there is none.
    """
    above = np.zeros(anomaly_map.shape, dtype=bool)
    if threshold is not None and anomalous is not False:
        above = at_least(anomaly_map, threshold)
    if anomalous and not above.any():
        rank = int(HIGHEST * anomaly_map.size)
        return np.asarray(anomaly_map >= np.partition(anomaly_map, rank, axis=None)[rank])
    return above


def find_regions(
    anomaly_map: NDArray[Any], called: NDArray[np.bool_], size: tuple[int, int] | None = None
) -> list[Region]:
    """Return the regions of the pixels that are called anomalous, by falling largest value.

    Args:
        anomaly_map: (H, W).
        called: (H, W).
        size: height and width of the photo; that of the map if not given.
    """
    labels, count = ndimage.label(called, structure=np.ones((3, 3)))
    numbers = np.arange(1, count + 1)
    largest, mean = (of(anomaly_map, labels, numbers) for of in (ndimage.maximum, ndimage.mean))
    areas = np.bincount(labels.ravel())[1:]
    (rows, columns), (height, width) = anomaly_map.shape, size or anomaly_map.shape
    regions = []
    for number, (down, across) in enumerate(ndimage.find_objects(labels)):
        # Every pixel of the photo that the region touches.
        left, top = across.start * width // columns, down.start * height // rows
        right, bottom = -(-across.stop * width // columns), -(-down.stop * height // rows)
        area = max(1, round(areas[number] * height * width / anomaly_map.size))
        box = (left, top, right - left, bottom - top)
        regions.append(Region(box, area, float(largest[number]), float(mean[number])))
    return sorted(regions, key=lambda region: -region.largest)


def at_least(maps: NDArray[Any], threshold: float) -> NDArray[np.bool_]:
    """Compare maps >= threshold as exact numbers.

    NumPy would round the threshold to float32 first, possibly up to a map value that lies below it or down
    from one; the smallest float32 at or above the threshold gives the same answer without a float64 copy.
    """
    rounded = maps.dtype.type(threshold)
    if float(rounded) < threshold:
        rounded = np.nextafter(rounded, maps.dtype.type(np.inf))
    return np.asarray(maps >= rounded)
