"""Thresholds from good images alone: exact leave-one-out calibration.

A training image's own distance is far too small, because it helped to fit the Gaussian it is measured by. Its
distance to the Gaussian fitted *without* it has a closed form, and so has that of a part which was photographed k
times: it must be left out whole, or its other photos vouch for it.

The ridge is a fixed scatter. At one position, with mean m and scatter ``S = sum (x_i - m)(x_i - m)^T`` of N images and
``lambda = eps (N - 1)``, PaDiM's covariance ``S / (N - 1) + eps I`` is ``W / (N - 1)`` with ``W = S + lambda I``. The
Gaussian without the k images of a part, of which ``r = N - k`` remain, has the same lambda. With the part's deviations
``D = [x_i - m]`` (d x k), ``1`` the vector of k ones and ``M = I + 1 1^T / r``:

    mean without the part         x_i - m_{-G} = D v_i,   v_i = e_i + 1 / r
    covariance without the part   (W - D M D^T) / (r - 1)

so with ``T = D^T W^-1 D`` (k x k) Woodbury's formula gives

    d_i^2 = (r - 1) v_i^T (T + T (M^-1 - T)^-1 T) v_i,   M^-1 = I - 1 1^T / N,

and for k = 1, with ``t = (x_i - m)^T W^-1 (x_i - m)``,

    d_i^2 = (N - 2) (N / (N - 1))^2 t / (1 - N / (N - 1) t).

W is the model's own matrix but for a factor, so the one Cholesky decomposition that fits it serves every part as well.

The leave-one-out scores of M parts behave nearly like the score of a new part, so their order statistics are thresholds
for a false-alarm rate of about alpha (see ``rule``). This is the jackknife. No finite-sample theorem covers it: Barber
et al. (Annals of Statistics 2021) prove a rate of at most 2 alpha for the jackknife+, and nothing for the jackknife. In
simulation and on real bottles it errs on the safe side (``benchmarks/false_alarms.py``, docs/threshold.md). A part
counts once, with the largest score of its photos: then alpha is the rate of new parts of which any photo raises an
alarm, and single photos raise fewer. No defect, and no test image, is looked at.
"""

import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from padim_bottle.errors import UserError
from padim_bottle.model.gaussian import COVARIANCE_EPSILON
from padim_bottle.model.parts import Parts

logger = logging.getLogger(__name__)

MINIMUM_PARTS = 3

# Bytes of anomaly maps that are kept between the two passes over them: 1,000 maps of 256 x 256 pixels.
MAPS_BUDGET = 1 << 28


@dataclass(frozen=True)
class Calibration:
    """What the leave-one-out maps of the N training images, of M parts, tell.

    Attributes:
        scores: (M,) float32, sorted leave-one-out scores of the parts.
        image_scores: (N,) float32, those of the images, in the order of training.
        pixel_threshold: quantile of all leave-one-out pixels.
        pixel_median: their median.
        map_means: (N,) float32, mean of each image's leave-one-out anomaly map, in the order of training.
        map_mean: (H, W) mean over images of the leave-one-out anomaly maps.
        map_std: (H, W) their standard deviation, moderated and bounded below (see ``PositionStatistics``).
    """

    scores: torch.Tensor
    image_scores: torch.Tensor
    pixel_threshold: torch.Tensor
    pixel_median: torch.Tensor
    map_means: torch.Tensor
    map_mean: torch.Tensor
    map_std: torch.Tensor


def leave_part_out_distances(deltas: torch.Tensor, factors: torch.Tensor, parts: Parts) -> torch.Tensor:
    """Return each image's Mahalanobis distance to the Gaussians fitted without the part that it shows.

    Args:
        deltas: (N, P, d), embeddings less the mean of all N images.
        factors: (P, d, d), Cholesky factors of the precision of all N images, in the type to compute in.
        parts: of the N images.

    Returns:
        (N, P) distances.
    """
    count, positions, features = deltas.shape
    by_position = deltas.transpose(0, 1)  # (P, N, d)
    few = count < features and deltas.device.type != "mps"
    if few:
        # Fewer images than features: with the Gram matrix K of all images (N x N), T is a block of
        # I - lambda (K + lambda I)^-1.
        ridge = COVARIANCE_EPSILON * (count - 1)
        by_position = by_position.double()
        kernel = by_position @ by_position.mT
        kernel.diagonal(dim1=-2, dim2=-1).add_(ridge)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(kernel))
    else:
        white = torch.bmm(by_position.to(factors.dtype), factors) / (count - 1) ** 0.5
    squares = torch.empty(count, positions, device=deltas.device)
    for members in parts.by_size():
        members = members.to(deltas.device)  # (G, k)
        if few:
            identity = torch.eye(members.shape[1], dtype=inverse.dtype, device=inverse.device)
            grams = identity - ridge * inverse[:, members[:, :, None], members[:, None, :]]
        elif members.shape[1] == 1:
            grams = white.square().sum(-1)[:, members[:, 0], None, None]
        else:
            grams = white[:, members] @ white[:, members].mT
        squares[members.flatten()] = _left_out_squares(grams, count).flatten(1).mT.float()
    return squares.sqrt()


def dtype_for(count: int, features: int, device: torch.device) -> torch.dtype:
    """Return in which type factors must be computed for N images.

    With few images ``1 - N / (N - 1) t`` is close to 0, and single precision would lose digits of the difference.
    """
    return torch.float64 if features <= count < 2 * features and device.type != "mps" else torch.float32


def _left_out_squares(grams: torch.Tensor, count: int) -> torch.Tensor:
    """Return (P, G, k) squared distances of T (P, G, k, k); ``T + T (M^-1 - T)^-1 T = M^-1 (M^-1 - T)^-1 T``."""
    size = grams.shape[-1]
    rest = count - size
    if size == 1:
        scale = count / (count - 1)
        t = grams[..., 0].clamp_min(0)
        return (rest - 1) * scale**2 * t / (1 - scale * t).clamp_min(torch.finfo(t.dtype).eps)
    identity = torch.eye(size, dtype=grams.dtype, device=grams.device)
    bound = identity - 1 / count
    v = identity + 1 / rest
    inner = bound @ torch.linalg.solve(bound - grams, grams)
    return (rest - 1) * (v @ inner @ v).diagonal(dim1=-2, dim2=-1).clamp_min(0)


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
    batch_size: int = 8,
) -> Calibration:
    """Turn leave-one-out maps into thresholds and the statistics of the position-calibrated score.

    Anomaly maps are made a batch at a time, and made twice if they take more than ``MAPS_BUDGET`` together. So memory
    does not grow with N beyond that and the largest ``1 - pixel_quantile`` of the pixels.

    Args:
        to_maps: makes the leave-one-out anomaly maps (n, H, W) of the images with these indices (n,).
        parts: of the N images.
        pixel_quantile: the pixel threshold is this quantile of all leave-one-out pixels, the smallest that at least
            this share of them does not exceed.
        position_calibration: score an image by ``max_p (map(p) - m(p)) / s(p)`` instead of ``max_p map(p)``.
            A training image's part is left out of m and s as well, or the false-alarm rate would not hold.
        prior_freedom: see ``PositionStatistics``.
        batch_size: images per batch of maps.
    """
    count = len(parts.names)
    to_maps, pixels = _kept(to_maps, count, batch_size)
    batches = (to_maps(batch) for batch in torch.arange(count).split(batch_size))
    positions = PositionStatistics.of(batches, count, prior_freedom)
    scores, map_means = torch.empty(2, count, device=positions.mean.device)
    top = torch.empty(0, device=positions.mean.device)
    keep = count * pixels - math.ceil(count * pixels * pixel_quantile - 1e-6) + 1
    for members in parts.by_size():
        for batch in members.split(max(1, batch_size // members.shape[1])):
            maps = to_maps(batch.flatten())
            seen = torch.cat([top, maps.flatten()])
            top = seen.topk(min(keep, len(seen))).values
            map_means[batch.flatten()] = maps.flatten(1).mean(dim=1).float()
            if position_calibration:
                maps = positions.leave_part_out_z(maps.unflatten(0, batch.shape)).flatten(0, 1)
            scores[batch.flatten()] = maps.flatten(1).amax(dim=1).float()
    if not top.any():
        logger.warning("The %d training images do not differ: anything that differs will be called a defect.", count)
    mean = positions.mean.float()
    return Calibration(
        scores=parts.largest(scores).sort().values,
        image_scores=scores,
        pixel_threshold=top[-1],
        # The map's scale only needs a typical value: the median of the mean map, not of all N maps.
        pixel_median=mean.median(),
        map_means=map_means,
        map_mean=mean,
        map_std=positions.std.float(),
    )


def _kept(
    to_maps: Callable[[torch.Tensor], torch.Tensor], count: int, batch_size: int
) -> tuple[Callable[[torch.Tensor], torch.Tensor], int]:
    """Return ``to_maps`` with the maps of all N images in memory if there is room, and the number of their pixels."""
    first = to_maps(torch.arange(min(batch_size, count)))
    if count * first[0].nbytes > MAPS_BUDGET:
        return to_maps, first[0].numel()
    kept = torch.cat([first, *(to_maps(batch) for batch in torch.arange(len(first), count).split(batch_size))])
    return lambda images: kept[images.to(kept.device)], first[0].numel()


@dataclass(frozen=True)
class PositionStatistics:
    """Mean and variance, at each position, of N anomaly maps of good images, in float64 where the device has it.

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
            batch = batch if batch.device.type == "mps" else batch.double()
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
