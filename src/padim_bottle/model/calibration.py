"""Thresholds from good images alone: exact leave-one-out calibration.

A training image's own distance is far too small, because it helped to fit the Gaussian it is measured by. Its
distance to the Gaussian fitted *without* it has a closed form. At one position, with mean m, scatter
``S = sum (x_i - m)(x_i - m)^T``, ``delta = x_i - m``:

    mean without i       x_i - m_{-i} = N / (N - 1) delta
    scatter without i    S_{-i} = S - N / (N - 1) delta delta^T

so with ``A = S / (N - 2) + eps I`` and ``c = N / ((N - 1)(N - 2))`` the covariance without i is
``A - c delta delta^T``, and the Sherman-Morrison formula gives, with ``q = delta^T A^-1 delta``,

    d_loo^2 = (N / (N - 1))^2 q / (1 - c q).

The leave-one-out scores of N good training images are exchangeable with the score of a new good image, so their
``ceil((N + 1)(1 - alpha))``-th smallest is a threshold for a false-alarm rate of alpha (the jackknife form of
conformal prediction; Vovk et al. 2005, Barber et al. 2021). No defect, and no test image, is looked at.
"""

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from padim_bottle.errors import UserError
from padim_bottle.model.gaussian import precision_cholesky

logger = logging.getLogger(__name__)

MINIMUM_IMAGES = 3


@dataclass(frozen=True)
class Calibration:
    """What the leave-one-out maps of the training images tell.

    Attributes:
        scores: (N,) float32, sorted leave-one-out image scores.
        pixel_threshold: quantile of all leave-one-out pixels.
        pixel_median: their median.
        map_mean: (H, W) mean over images of the leave-one-out anomaly maps.
        map_std: (H, W) their standard deviation, bounded below (see ``position_statistics``).
    """

    scores: torch.Tensor
    pixel_threshold: torch.Tensor
    pixel_median: torch.Tensor
    map_mean: torch.Tensor
    map_std: torch.Tensor


def leave_one_out_distances(deltas: torch.Tensor, covariance: torch.Tensor) -> torch.Tensor:
    """Return each image's Mahalanobis distance to the Gaussians fitted without it.

    Args:
        deltas: (N, P, d), embeddings less the mean of all N images.
        covariance: (P, d, d), ``S / (N - 2) + eps I``.

    Returns:
        (N, P) distances.

    Raises:
        UserError: fewer than three images.
    """
    count, _, features = deltas.shape
    check_image_count(count)
    if count < 2 * features and deltas.device.type != "mps":
        # With few images 1 - c q is close to 0, and single precision would lose digits of the difference.
        deltas, covariance = deltas.double(), covariance.double()
    factor = precision_cholesky(covariance)
    q = torch.bmm(deltas.transpose(0, 1), factor).square().sum(-1).mT  # (N, P)
    c = count / ((count - 1) * (count - 2))
    ratio = count / (count - 1)
    return (ratio * (q / (1 - c * q).clamp_min(torch.finfo(q.dtype).eps)).sqrt()).float()


def check_image_count(count: int) -> None:
    """Raise a UserError where there are too few images to leave one out."""
    if count < MINIMUM_IMAGES:
        raise UserError(
            f"Leave-one-out calibration needs at least {MINIMUM_IMAGES} training images, found {count}. Add good "
            "images, or set model.init_args.calibration to false (the threshold then looks at the test set)."
        )


def calibrate(
    distances: torch.Tensor,
    to_map: Callable[[torch.Tensor], torch.Tensor],
    *,
    pixel_quantile: float,
    position_calibration: bool,
    batch_size: int = 8,
) -> Calibration:
    """Turn leave-one-out distances into thresholds and the statistics of the position-calibrated score.

    Anomaly maps are made a batch at a time and dropped, so memory does not grow with N beyond the distances
    themselves (4 P bytes an image) and the largest ``1 - pixel_quantile`` of the pixels.

    Args:
        distances: (N, h, w) leave-one-out distances at the patch positions.
        to_map: makes anomaly maps (B, H, W) of distances (B, h, w).
        pixel_quantile: the pixel threshold is this quantile of all leave-one-out pixels, the smallest that at least
            this share of them does not exceed.
        position_calibration: score an image by ``max_p (map(p) - m(p)) / s(p)`` instead of ``max_p map(p)``.
            A training image is left out of m and s as well, or the false-alarm rate would not hold.
        batch_size: images per batch of maps.
    """
    count = len(distances)

    def maps() -> Iterator[torch.Tensor]:
        return (to_map(batch) for batch in distances.split(batch_size))

    mean, std = position_statistics(maps(), count)
    if not distances.any():
        logger.warning("The %d training images do not differ: anything that differs will be called a defect.", count)
    scores = []
    top = distances.new_empty(0)
    keep = None
    for batch in maps():
        if keep is None:
            total = count * batch[0].numel()
            keep = total - math.ceil(total * pixel_quantile - 1e-6) + 1
        pixels = torch.cat([top, batch.flatten()])
        top = pixels.topk(min(keep, len(pixels))).values
        if position_calibration:
            batch = leave_one_out_z(batch, mean, std, count)
        scores.append(batch.flatten(1).amax(dim=1))
    return Calibration(
        scores=torch.cat(scores).float().sort().values,
        pixel_threshold=top[-1],
        # The map's scale only needs a typical value: the median of the mean map, not of all N maps.
        pixel_median=mean.float().median(),
        map_mean=mean.float(),
        map_std=std.float(),
    )


def position_statistics(maps: Iterator[torch.Tensor], count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and standard deviation (H, W), in float64 where the device has it, of N anomaly maps.

    The standard deviation is bounded below by a thousandth of its own median over the map: where good images do not
    differ at all, any difference counts, but not infinitely.
    """
    total = squares = shift = None
    for batch in maps:
        batch = batch if batch.device.type == "mps" else batch.double()
        if shift is None:
            shift = batch.mean(dim=0)
            total, squares = torch.zeros_like(shift), torch.zeros_like(shift)
        total += (batch - shift).sum(dim=0)
        squares += (batch - shift).square().sum(dim=0)
    mean = shift + total / count
    variance = (squares - total.square() / count).clamp_min(0) / (count - 1)
    std = variance.sqrt()
    return mean, std.clamp_min(max(1e-3 * std.median().item(), 1e-6))


def leave_one_out_z(maps: torch.Tensor, mean: torch.Tensor, std: torch.Tensor, count: int) -> torch.Tensor:
    """Return maps (B, H, W) standardised by the mean and deviation of the other ``count - 1`` maps.

    With ``dev = map_i - m``: ``m_{-i} = m - dev / (N - 1)`` and
    ``s_{-i}^2 = ((N - 1) s^2 - dev^2 N / (N - 1)) / (N - 2)``.
    """
    deviation = maps.to(mean.dtype) - mean
    variance = ((count - 1) * std.square() - deviation.square() * count / (count - 1)) / (count - 2)
    floor = max(1e-3 * std.median().item(), 1e-6)
    return deviation * (count / (count - 1)) / variance.clamp_min(floor**2).sqrt()


def conformal_threshold(scores: torch.Tensor, alpha: float, *, warn: bool = True) -> torch.Tensor:
    """Return the smallest float32 whose rule ``score >= threshold`` means ``p_value <= alpha``.

    Args:
        scores: (N,) leave-one-out scores of good images.
        alpha: wanted false-alarm rate, in (0, 1).
        warn: say where there are too few scores for this alpha.

    Returns:
        The float after the ``ceil((N + 1)(1 - alpha))``-th smallest score. With fewer than ``1 / alpha - 1`` images
        that rank does not exist: the largest score is taken, which has a false-alarm rate of ``1 / (N + 1)``, and a
        warning says so.
    """
    count = len(scores)
    # The small slack keeps (N + 1)(1 - alpha), a whole number for many alphas, from being rounded up past it.
    rank = math.ceil((count + 1) * (1 - alpha) - 1e-9)
    if warn:
        _warn_of_few(count, alpha, rank)
    rank = min(rank, count)
    kth = scores.sort().values[rank - 1]
    return torch.nextafter(kth, torch.full_like(kth, torch.inf))


def _warn_of_few(count: int, alpha: float, rank: int) -> None:
    if rank > count:
        logger.warning(
            "alpha = %g needs at least %d training images, there are %d: the threshold is their largest score, a "
            "false-alarm rate of %.3g.",
            alpha, math.ceil(1 / alpha - 1e-9) - 1, count, 1 / (count + 1),
        )  # fmt: skip
    elif count * alpha < 5:
        logger.warning(
            "alpha = %g of %d training images rests on the %d largest scores: expect a rough threshold (more good "
            "images or a larger alpha make it steadier).",
            alpha, count, count - rank + 1,
        )  # fmt: skip


def p_value(score: torch.Tensor, calibration_scores: torch.Tensor) -> torch.Tensor:
    """Return ``(1 + #{leave-one-out scores >= score}) / (N + 1)`` for each score.

    Args:
        score: any shape.
        calibration_scores: (N,) sorted.
    """
    below = torch.searchsorted(calibration_scores, score.contiguous())
    count = len(calibration_scores)
    return (1 + count - below).float() / (count + 1)
