"""Photos read ahead and judged in batches."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from padim_bottle.data.images import full_size
from padim_bottle.errors import UserError
from padim_bottle.predict.predictor import ImagePrediction, Predictor, PreparedPhoto
from padim_bottle.stages import cores


def judge(
    predictor: Predictor,
    photos: Sequence[Path],
    batch_size: int,
    read: Callable[[Path], NDArray[np.uint8]] | None = None,
) -> Iterator[tuple[Path, ImagePrediction | UserError]]:
    """Predict photos in batches, in order; one that cannot be read comes with its error.

    Photos are read and brought to the model's size in threads, at most two batches beforehand: memory does not grow
    with their number, and little with their size.

    Args:
        predictor: the model.
        photos: to judge.
        batch_size: photos at a time.
        read: returns a photo (h, w, 3), RGB; the model's own if not given.
    """

    def prepared(path: Path) -> PreparedPhoto | UserError:
        try:
            photo = (read or predictor.read)(path)
            return predictor.prepare(photo, full_size(path, photo))
        except UserError as error:
            return error

    readings = zip(photos, read_ahead(prepared, photos, 2 * batch_size), strict=True)
    while batch := list(islice(readings, batch_size)):
        whole = [(path, photo) for path, photo in batch if not isinstance(photo, UserError)]
        outcomes = iter(_predict(predictor, whole))
        yield from ((path, photo if isinstance(photo, UserError) else next(outcomes)) for path, photo in batch)


def _predict(predictor: Predictor, photos: list[tuple[Path, PreparedPhoto]]) -> list[ImagePrediction | UserError]:
    """Predict prepared photos; one without a verdict takes none from the others, and its error names it."""
    try:
        return list(predictor.predict_prepared([photo for _, photo in photos]))
    except UserError as error:
        if len(photos) == 1:
            return [UserError(f"{photos[0][0]}: {error}")]
        return [outcome for photo in photos for outcome in _predict(predictor, [photo])]


def read_ahead(read: Callable[[Path], Any], photos: Sequence[Path], ahead: int) -> Iterator[Any]:
    """Read photos in threads, in order, at most ``ahead`` of them beforehand."""
    with ThreadPoolExecutor(min(4, cores())) as pool:
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
