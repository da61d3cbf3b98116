"""Thresholds from good images alone: exact leave-one-out calibration.

A training image's own distance is far too small, because it helped to fit the Gaussian it is measured by. Its
distance to the Gaussian fitted *without* it has a closed form. At one position, with mean m, scatter
``S = sum (x_i - m)(x_i - m)^T``, ``delta = x_i - m``:

    mean without i       x_i - m_{-i} = N / (N - 1) delta
    scatter without i    S_{-i} = S - N / (N - 1) delta delta^T

so with ``A = S / (N - 2) + eps I`` and ``c = N / ((N - 1)(N - 2))`` the covariance without i is
``A - c delta delta^T``, and the Sherman-Morrison formula gives, with ``q = delta^T A^-1 delta``,

    d_loo^2 = (N / (N - 1))^2 q / (1 - c q).

A part that was photographed k times must be left out whole, or its other photos vouch for it. With
``D = [x_i - m]`` of its photos (d x k), ``r = N - k`` images that remain, ``M = I + 1 1^T / r`` (k x k),
``A = S / (r - 1) + eps I`` and ``Q = D^T A^-1 D``, Woodbury's formula gives

    d_i^2 = v_i^T (Q + Q ((r - 1) M^-1 - Q)^-1 Q) v_i,   v_i = e_i + 1 / r,   M^-1 = I - 1 1^T / N.

The leave-one-out scores of M parts behave nearly like the score of a new part, so their order statistics are thresholds
for a false-alarm rate of about alpha (see ``rule``). This is the jackknife.
No finite-sample theorem covers it: Barber et al. (Annals of Statistics 2021) prove a rate of at most 2 alpha for the
jackknife+, and nothing for the jackknife. In simulation it is near-exact and errs on the safe side (4.1 to 4.7 % at
alpha = 5 %). A part counts once, with the largest score of its photos: then alpha is the rate of new parts of which
any photo raises an alarm, and single photos raise fewer. No defect, and no test image, is looked at.
"""

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from padim_bottle.errors import UserError
from padim_bottle.model.gaussian import COVARIANCE_EPSILON, precision_cholesky
from padim_bottle.model.parts import Parts

logger = logging.getLogger(__name__)

MINIMUM_PARTS = 3


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
        map_std: (H, W) their standard deviation, bounded below (see ``position_statistics``).
    """

    scores: torch.Tensor
    image_scores: torch.Tensor
    pixel_threshold: torch.Tensor
    pixel_median: torch.Tensor
    map_means: torch.Tensor
    map_mean: torch.Tensor
    map_std: torch.Tensor


def leave_part_out_distances(
    deltas: torch.Tensor, covariance: Callable[[int], torch.Tensor], parts: Parts
) -> torch.Tensor:
    """Return each image's Mahalanobis distance to the Gaussians fitted without the part that it shows.

    Args:
        deltas: (N, P, d), embeddings less the mean of all N images.
        covariance: returns (P, d, d), ``S / freedom + eps I``, for a number of degrees of freedom.
        parts: of the N images.

    Returns:
        (N, P) distances.

    Raises:
        UserError: fewer than three parts.
    """
    check_parts(parts)
    count = len(deltas)
    squares = torch.empty(deltas.shape[:2], device=deltas.device)
    for members in parts.by_size():
        members = members.to(deltas.device)
        size = members.shape[1]
        grams = mahalanobis_grams(deltas, covariance, members, count - size - 1)  # (P, G, k, k)
        left_out = _leave_one_out(grams[..., 0], count) if size == 1 else _leave_k_out(grams, count)
        squares[members.flatten()] = left_out.flatten(1).mT.float()
    return squares.sqrt()


def _leave_one_out(q: torch.Tensor, count: int) -> torch.Tensor:
    c = count / ((count - 1) * (count - 2))
    return (count / (count - 1)) ** 2 * (q / (1 - c * q).clamp_min(torch.finfo(q.dtype).eps))


def _leave_k_out(grams: torch.Tensor, count: int) -> torch.Tensor:
    """Return (P, G, k) squared distances of the module's formula; ``Q + Q (B - Q)^-1 Q = B (B - Q)^-1 Q``."""
    size = grams.shape[-1]
    rest = count - size
    identity = torch.eye(size, dtype=grams.dtype, device=grams.device)
    bound = (rest - 1) * (identity - 1 / count)
    v = identity + 1 / rest
    inner = bound @ torch.linalg.solve(bound - grams, grams)
    return (v @ inner @ v).diagonal(dim1=-2, dim2=-1).clamp_min(0)


def mahalanobis_grams(
    deltas: torch.Tensor, covariance: Callable[[int], torch.Tensor], members: torch.Tensor, freedom: int
) -> torch.Tensor:
    """Return ``D^T A^-1 D`` (P, G, k, k) of G parts (G, k), with A the covariance at some degrees of freedom."""
    count, _, features = deltas.shape
    by_position = deltas.transpose(0, 1)  # (P, N, d)
    # With few images 1 - c q is close to 0, and single precision would lose digits of the difference.
    exact = count < 2 * features and deltas.device.type != "mps"
    if exact and count < features:
        # Fewer images than features: with the Gram matrix K = D^T D of all images (N x N),
        # D^T (S / f + eps I)^-1 D = f (I - f eps (K + f eps I)^-1), since S = D D^T.
        by_position = by_position.double()
        kernel = by_position @ by_position.mT
        kernel.diagonal(dim1=-2, dim2=-1).add_(freedom * COVARIANCE_EPSILON)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(kernel))
        identity = torch.eye(members.shape[1], dtype=inverse.dtype, device=inverse.device)
        return freedom * (
            identity - freedom * COVARIANCE_EPSILON * inverse[:, members[:, :, None], members[:, None, :]]
        )
    matrix = covariance(freedom)
    if exact:
        by_position, matrix = by_position.double(), matrix.double()
    white = torch.bmm(by_position, precision_cholesky(matrix))
    if members.shape[1] == 1:
        return white.square().sum(-1)[:, members[:, 0], None, None]
    white = white[:, members]  # (P, G, k, d)
    return white @ white.mT


def check_parts(parts: Parts) -> None:
    """Raise a UserError where there are too few parts to leave one out."""
    if len(parts) < MINIMUM_PARTS:
        images = len(parts.names)
        if len(parts) < images:
            raise UserError(
                f"Leave-one-out calibration needs at least {MINIMUM_PARTS} parts, and the {images} training images "
                f"show {len(parts)}. Add photos of other good parts, or let group (or copies) join fewer of them."
            )
        raise UserError(
            f"Leave-one-out calibration needs at least {MINIMUM_PARTS} training images, found {images}. Add "
            "good images, or set model.init_args.calibration to false (the threshold then looks at the test set)."
        )


def calibrate(
    to_maps: Callable[[torch.Tensor], torch.Tensor],
    parts: Parts,
    *,
    pixel_quantile: float,
    position_calibration: bool,
    batch_size: int = 8,
) -> Calibration:
    """Turn leave-one-out maps into thresholds and the statistics of the position-calibrated score.

    Anomaly maps are made a batch at a time and dropped, so memory does not grow with N beyond the largest
    ``1 - pixel_quantile`` of the pixels.

    Args:
        to_maps: makes the leave-one-out anomaly maps (n, H, W) of the images with these indices (n,).
        parts: of the N images.
        pixel_quantile: the pixel threshold is this quantile of all leave-one-out pixels, the smallest that at least
            this share of them does not exceed.
        position_calibration: score an image by ``max_p (map(p) - m(p)) / s(p)`` instead of ``max_p map(p)``.
            A training image's part is left out of m and s as well, or the false-alarm rate would not hold.
        batch_size: images per batch of maps.
    """
    count = len(parts.names)
    mean, std = position_statistics((to_maps(batch) for batch in torch.arange(count).split(batch_size)), count)
    scores, map_means = torch.empty(2, count, device=mean.device)
    top = torch.empty(0, device=mean.device)
    keep = None
    for members in parts.by_size():
        for batch in members.split(max(1, batch_size // members.shape[1])):
            maps = to_maps(batch.flatten())
            if keep is None:
                total = count * maps[0].numel()
                keep = total - math.ceil(total * pixel_quantile - 1e-6) + 1
            pixels = torch.cat([top, maps.flatten()])
            top = pixels.topk(min(keep, len(pixels))).values
            map_means[batch.flatten()] = maps.flatten(1).mean(dim=1).float()
            if position_calibration:
                maps = leave_part_out_z(maps.unflatten(0, batch.shape), mean, std, count).flatten(0, 1)
            scores[batch.flatten()] = maps.flatten(1).amax(dim=1).float()
    if not top.any():
        logger.warning("The %d training images do not differ: anything that differs will be called a defect.", count)
    return Calibration(
        scores=parts.largest(scores).sort().values,
        image_scores=scores,
        pixel_threshold=top[-1],
        # The map's scale only needs a typical value: the median of the mean map, not of all N maps.
        pixel_median=mean.float().median(),
        map_means=map_means,
        map_mean=mean.float(),
        map_std=std.float(),
    )


def position_statistics(maps: Iterator[torch.Tensor], count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and standard deviation (H, W), in float64 where the device has it, of N anomaly maps.

    The standard deviation is bounded below by a thousandth of its own median over the map: where good images do not
    differ at all, any difference counts, but not infinitely.
    """
    total: Any = 0.0
    squares: Any = 0.0
    shift: Any = None
    for batch in maps:
        batch = batch if batch.device.type == "mps" else batch.double()
        if shift is None:
            shift = batch.mean(dim=0)
        total = total + (batch - shift).sum(dim=0)
        squares = squares + (batch - shift).square().sum(dim=0)
    mean = shift + total / count
    variance = (squares - total.square() / count).clamp_min(0) / (count - 1)
    std = variance.sqrt()
    return mean, std.clamp_min(max(1e-3 * std.median().item(), 1e-6))


def leave_part_out_z(maps: torch.Tensor, mean: torch.Tensor, std: torch.Tensor, count: int) -> torch.Tensor:
    """Return maps (G, k, H, W) of G parts, standardised by the mean and deviation of the maps of all other parts.

    With ``dev = map_i - m``, sums over the part's k maps, and ``r = N - k``: ``m_{-G} = m - sum(dev) / r`` and
    ``s_{-G}^2 = ((N - 1) s^2 - sum(dev^2) - sum(dev)^2 / r) / (r - 1)``.
    """
    rest = count - maps.shape[1]
    deviation = maps.to(mean.dtype) - mean
    total, squares = deviation.sum(dim=1, keepdim=True), deviation.square().sum(dim=1, keepdim=True)
    variance = ((count - 1) * std.square() - squares - total.square() / rest) / (rest - 1)
    floor = max(1e-3 * std.median().item(), 1e-6)
    return (deviation + total / rest) / variance.clamp_min(floor**2).sqrt()
