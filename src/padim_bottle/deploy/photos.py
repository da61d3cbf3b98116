"""Photos of a command line: found, read ahead, judged in batches, drawn. Heavy imports are inside functions."""

from __future__ import annotations

import glob
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from padim_bottle.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from padim_bottle.deploy.predictor import ImagePrediction, Predictor


def find_photos(patterns: Iterable[str]) -> tuple[list[Path], list[str]]:
    """Resolve files, folders (with all below them) and patterns, each photo once.

    Returns:
        The photos in the order of the arguments, sorted within each, and a sentence for each argument that names none.
    """
    from padim_bottle.data.layout import IMAGE_SUFFIXES

    photos: dict[Path, None] = {}
    problems = []
    for pattern in patterns:
        named = [Path(pattern)] if Path(pattern).exists() else sorted(map(Path, glob.glob(pattern, recursive=True)))  # noqa: PTH207
        found = []
        for path in named:
            if path.is_dir():
                below = (file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
                found += sorted(file for file in below if not _hidden(file.relative_to(path)) and not file.is_dir())
            elif len(named) == 1 or path.suffix.lower() in IMAGE_SUFFIXES:
                found.append(path)
        if not found:
            problems.append(f"There is no photo {pattern}." if not named else f"There are no photos in {pattern}.")
        photos.update(dict.fromkeys(found))
    return list(photos), problems


def read_ahead(photos: Sequence[Path], ahead: int) -> Iterator[tuple[Path, NDArray[np.uint8] | UserError]]:
    """Read photos in threads, in order, at most ``ahead`` of them beforehand; an error takes its photo's place."""
    from padim_bottle.data.images import read_image

    def read(path: Path) -> NDArray[np.uint8] | UserError:
        try:
            return read_image(path)
        except UserError as error:
            return error

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        waiting: deque[tuple[Path, Future]] = deque()
        try:
            for path in photos:
                waiting.append((path, pool.submit(read, path)))
                if len(waiting) > ahead:
                    first, reading = waiting.popleft()
                    yield first, reading.result()
            while waiting:
                first, reading = waiting.popleft()
                yield first, reading.result()
        finally:
            pool.shutdown(cancel_futures=True)


def judge(
    predictor: Predictor, photos: Sequence[Path], batch_size: int
) -> Iterator[tuple[Path, ImagePrediction | UserError, NDArray[np.uint8] | None]]:
    """Predict photos in batches, in order; one that cannot be read comes with its error."""
    batch: list[tuple[Path, NDArray[np.uint8] | UserError]] = []
    for i, item in enumerate(read_ahead(photos, 2 * batch_size), start=1):
        batch.append(item)
        if len(batch) == batch_size or i == len(photos):
            predictions = iter(predictor.predict([photo for _, photo in batch if not isinstance(photo, UserError)]))
            for path, photo in batch:
                if isinstance(photo, UserError):
                    yield path, photo, None
                else:
                    yield path, next(predictions), photo
            batch = []


def draw(photo: NDArray[np.uint8], prediction: ImagePrediction) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return the heatmap over the photo (h, w, 3) and the mask (h, w), 255 where anomalous, at the photo's own size."""
    import cv2

    from padim_bottle.figures.panels import HeatmapScale

    height, width = photo.shape[:2]
    shrinks = height < prediction.anomaly_map.shape[0]
    anomaly_map = cv2.resize(
        prediction.anomaly_map, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    )
    # Normalised: the threshold is at 0.5 and a typical good pixel at 0.25.
    colours = HeatmapScale.from_threshold(0.5, 0.25).colours(anomaly_map)
    grey = cv2.cvtColor(cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    # The mask is the model's own where sizes agree; else its border follows the map, not the model's coarser pixels.
    same = prediction.mask.shape == (height, width)
    mask = prediction.mask if same else anomaly_map >= 0.5
    return cv2.addWeighted(grey, 0.35, colours, 0.65, 0), (mask * 255).astype("uint8")


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
