"""Photos of a command line: found, read ahead and judged in batches. Heavy imports are inside functions."""

from __future__ import annotations

import glob
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from padim_bottle.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from padim_bottle.predict.predictor import ImagePrediction, Predictor


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


def judge(
    predictor: Predictor, photos: Sequence[Path], batch_size: int
) -> Iterator[tuple[Path, ImagePrediction | UserError]]:
    """Predict photos in batches, in order; one that cannot be read comes with its error.

    Photos are read and brought to the model's size in threads, at most two batches beforehand: memory does not grow
    with their number, and little with their size.
    """
    from padim_bottle.data.images import read_image

    def read(path: Path) -> NDArray[np.float32] | UserError:
        try:
            return predictor.prepare(read_image(path))
        except UserError as error:
            return error

    readings = zip(photos, read_ahead(read, photos, 2 * batch_size), strict=True)
    while batch := list(islice(readings, batch_size)):
        whole = [(path, photo) for path, photo in batch if not isinstance(photo, UserError)]
        outcomes = iter(_predict(predictor, whole))
        yield from ((path, photo if isinstance(photo, UserError) else next(outcomes)) for path, photo in batch)


def _predict(predictor: Predictor, photos: list[tuple[Path, NDArray[np.float32]]]) -> list[ImagePrediction | UserError]:
    """Predict prepared photos; one without a verdict takes none from the others, and its error names it."""
    try:
        return list(predictor.predict_prepared([photo for _, photo in photos]))
    except UserError as error:
        if len(photos) == 1:
            return [UserError(f"{photos[0][0]}: {error}")]
        return [outcome for photo in photos for outcome in _predict(predictor, [photo])]


def read_ahead(read: Callable[[Path], Any], photos: Sequence[Path], ahead: int) -> Iterator[Any]:
    """Read photos in threads, in order, at most ``ahead`` of them beforehand."""
    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        waiting: deque[Future[Any]] = deque()
        try:
            for path in photos:
                waiting.append(pool.submit(read, path))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)
