"""Thresholds from good images alone: exact leave-one-out calibration.

The leave-one-out scores of M parts behave nearly like the score of a new part, so their order statistics are thresholds
for a false-alarm rate of about alpha (see ``rule``). This is the jackknife. No finite-sample theorem covers it: Barber
et al. (Annals of Statistics 2021) prove a rate of at most 2 alpha for the jackknife+, and nothing for the jackknife. In
simulation and on real bottles it errs on the safe side (``benchmarks/false_alarms.py``, docs/threshold.md). A part
counts once, with the largest score of its photos: then alpha is the rate of new parts of which any photo raises an
alarm, and single photos raise fewer. No defect, and no test image, is looked at.
"""

import logging
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from padim_bottle.errors import UserError
from padim_bottle.model.parts import Parts

logger = logging.getLogger(__name__)

MINIMUM_PARTS = 3

# Bytes of anomaly maps that are kept between the two passes over them: 1,000 maps of 256 x 256 pixels.
MAPS_BUDGET = 1 << 28

# Above what so many of a good photo's pixels reach, a map is damped, see ``anomaly_map.damp``.
PIXEL_LEVEL = 0.99


@dataclass(frozen=True)
class Calibration:
    """What the leave-one-out maps of the N training images, of M parts, tell.

    Attributes:
        scores: (M,) float32, sorted leave-one-out scores of the parts.
        image_scores: (N,) float32, those of the images, in the order of training.
        pixel_threshold: quantile of all leave-one-out pixels.
        pixel_median: their median.
        pixel_level: what ``PIXEL_LEVEL`` of the pixels of a typical leave-one-out map do not exceed.
        map_means: (N,) float32, mean of each image's leave-one-out anomaly map, in the order of training.
        scored_mean: (h, w) mean over images of what the score is the largest value of.
        scored_std: (h, w) its standard deviation, moderated and bounded below (see ``PositionStatistics``).
    """

    scores: torch.Tensor
    image_scores: torch.Tensor
    pixel_threshold: torch.Tensor
    pixel_median: torch.Tensor
    pixel_level: torch.Tensor
    map_means: torch.Tensor
    scored_mean: torch.Tensor
    scored_std: torch.Tensor


def check_parts(parts: Parts) -> None:
    """Raise a UserError where there are too few parts to leave one out."""
    if len(parts) < MINIMUM_PARTS:
        images = len(parts.names)
        if len(parts) < images:
            raise UserError(
                f"Leave-one-out calibration needs at least {MINIMUM_PARTS} parts, and the {images} training images "
                f"show {len(parts)}. Add photos of other good parts, or let group (or copies) join fewer of them."
            )
        # Of fewer, no covariance can be estimated either.
        otherwise = ", or set model.init_args.calibration to false (the threshold then looks at the test set)"
        raise UserError(
            f"Leave-one-out calibration needs at least {MINIMUM_PARTS} training images, found {images}. Add "
            f"good images{otherwise if images >= 2 else ''}."
        )


def calibrate(
    to_maps: Callable[[torch.Tensor], torch.Tensor],
    parts: Parts,
    *,
    pixel_quantile: float,
    position_calibration: bool,
    prior_freedom: float = 0.0,
    scored: torch.Tensor | None = None,
    batch_size: int = 8,
) -> Calibration:
    """Turn leave-one-out maps into thresholds and the statistics of the position-calibrated score.

    Anomaly maps are made a batch at a time, so memory does not grow with N but by the largest ``1 - pixel_quantile`` of
    the pixels. Where they are scored themselves they are asked for twice.

    Args:
        to_maps: gives the leave-one-out anomaly maps (n, H, W) of images by their indices (n,), see ``kept_maps``.
        parts: of the N images.
        pixel_quantile: the pixel threshold is this quantile of all leave-one-out pixels, the smallest that at least
            this share of them does not exceed.
        position_calibration: score an image by ``max_p (map(p) - m(p)) / s(p)`` instead of ``max_p map(p)``.
            A training image's part is left out of m and s as well, or the false-alarm rate would not hold.
        prior_freedom: see ``PositionStatistics``.
        scored: (N, h, w) leave-one-out values whose largest is the score; ``None`` for the anomaly maps.
        batch_size: images per batch of maps.
    """
    count = len(parts.names)
    to_scored = to_maps if scored is None else scored.__getitem__
    pixels = _Pixels(pixel_quantile, count)

    def first_pass() -> Iterator[torch.Tensor]:
        for batch in torch.arange(count).split(batch_size):
            maps = to_maps(batch)
            pixels.add(batch, maps)
            yield maps if scored is None else scored[batch]

    positions = PositionStatistics.of(first_pass(), count, prior_freedom)
    scores = torch.empty(count, device=positions.mean.device)
    for members in parts.by_size():
        for batch in members.split(max(1, batch_size // members.shape[1])):
            values = to_scored(batch.flatten())
            if position_calibration:
                values = positions.leave_part_out_z(values.unflatten(0, batch.shape)).flatten(0, 1)
            scores[batch.flatten()] = values.flatten(1).amax(dim=1).float()
    # Where they do not, rounding leaves some millionths.
    if pixels.top[0] < 1e-4:
        logger.warning("The %d training images do not differ: anything that differs will be called a defect.", count)
    return Calibration(
        scores=parts.largest(scores).sort().values,
        image_scores=scores,
        pixel_threshold=pixels.top[-1],
        pixel_median=pixels.median,
        pixel_level=pixels.levels.median(),
        map_means=pixels.means,
        scored_mean=positions.mean.float(),
        scored_std=positions.std.float(),
    )


def kept_maps(
    to_maps: Callable[[torch.Tensor], torch.Tensor], count: int, batch_size: int = 8
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return ``to_maps`` with the maps of all N images in memory, if they take no more than ``MAPS_BUDGET``."""
    first = to_maps(torch.arange(min(batch_size, count)))
    if count * first[0].nbytes > MAPS_BUDGET:
        return to_maps
    kept = torch.cat([first, *(to_maps(batch) for batch in torch.arange(len(first), count).split(batch_size))])
    return lambda images: kept[images.to(kept.device)]


class _Pixels:
    """What is kept of the pixels of N maps, which come batch by batch.

    Args:
        quantile: the smallest of ``top`` is this quantile of all pixels.
        count: N.

    Attributes:
        top: the largest pixels, in falling order.
        means: (N,) mean of each map.
        levels: (N,) what ``PIXEL_LEVEL`` of each map's pixels do not exceed.
    """

    def __init__(self, quantile: float, count: int) -> None:
        self.quantile, self.count = quantile, count
        self.top = self.means = self.levels = self._sum = torch.empty(0)

    def add(self, images: torch.Tensor, maps: torch.Tensor) -> None:
        """Look at the maps (n, H, W) of the images with these indices (n,)."""
        pixels = maps.flatten(1)
        if not len(self._sum):
            self.means, self.levels = pixels.new_empty(2, self.count)
            self._sum = torch.zeros_like(pixels[0], dtype=torch.float64)
        total = self.count * pixels.shape[1]
        keep = total - math.ceil(total * self.quantile - 1e-6) + 1
        seen = torch.cat([self.top.to(pixels), pixels.flatten()])
        self.top = seen.topk(min(keep, len(seen))).values
        self.means[images] = pixels.mean(dim=1)
        self.levels[images] = pixels.kthvalue(math.ceil(PIXEL_LEVEL * pixels.shape[1]), dim=1).values
        self._sum += pixels.sum(dim=0, dtype=torch.float64)

    @property
    def median(self) -> torch.Tensor:
        """Of the mean map: a typical value is enough for a scale."""
        return (self._sum / self.count).float().median()


@dataclass(frozen=True)
class PositionStatistics:
    """Mean and variance, at each position, of N anomaly maps of good images, in float64.

    With few maps single variances are rough, and the largest of many standardised pixels has heavy tails. So each is
    moderated by the typical one (Smyth 2004), the median s0^2 over the map, which counts as nu more degrees of freedom:
    ``s^2 := ((N - 1) s^2 + nu s0^2) / (N - 1 + nu)``.

    It is bounded below by a millionth of s0^2: where good images do not differ at all, any difference counts, but not
    infinitely.

    Attributes:
        mean: (H, W).
        squares: (H, W), sum of the squared deviations from it.
        count: N.
        prior_freedom: nu; 0 for no moderation.
    """

    mean: torch.Tensor
    squares: torch.Tensor
    count: int
    prior_freedom: float = 0.0

    @classmethod
    def of(cls, maps: Iterable[torch.Tensor], count: int, prior_freedom: float = 0.0) -> "PositionStatistics":
        """Take the statistics of batches (n, H, W) of N maps."""
        total: Any = 0.0
        squares: Any = 0.0
        shift: Any = None
        for batch in maps:
            batch = batch.double()
            if shift is None:
                shift = batch.mean(dim=0)
            total = total + (batch - shift).sum(dim=0)
            squares = squares + (batch - shift).square().sum(dim=0)
        return cls(shift + total / count, (squares - total.square() / count).clamp_min(0), count, prior_freedom)

    @property
    def std(self) -> torch.Tensor:
        """The standard deviation (H, W) for images that are none of the N."""
        return self._std(self.squares, self.count - 1)

    def leave_part_out_z(self, maps: torch.Tensor) -> torch.Tensor:
        """Return maps (G, k, H, W) of G of the parts, standardised by the maps of all other parts.

        With ``dev = map_i - m``, sums over the part's k maps, and ``r = N - k``: ``m_{-G} = m - sum(dev) / r``, and the
        squared deviations without the part are ``(N - 1) s^2 - sum(dev^2) - sum(dev)^2 / r``.
        """
        rest = self.count - maps.shape[1]
        deviation = maps.to(self.mean.dtype) - self.mean
        total, squares = deviation.sum(dim=1, keepdim=True), deviation.square().sum(dim=1, keepdim=True)
        squares = (self.squares - squares - total.square() / rest).clamp_min(0)
        return (deviation + total / rest) / self._std(squares, rest - 1)

    def _std(self, squares: torch.Tensor, freedom: int) -> torch.Tensor:
        typical = self.squares.median() / (self.count - 1)
        variance = (squares + self.prior_freedom * typical) / (freedom + self.prior_freedom)
        return variance.clamp_min(max(1e-6 * typical.item(), 1e-12)).sqrt()
