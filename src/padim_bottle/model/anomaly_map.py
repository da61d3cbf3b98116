"""From distances at patch positions to an anomaly map of the image's size."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from anomalib.models.components.filters import GaussianBlur2d
from torch import nn
from torch.nn import functional as F  # noqa: N812

# What anomalib's pre-processor subtracted and divided by.
IMAGENET_MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
IMAGENET_STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)

# Of the guided filter, in squared grey levels of [0, 1]: edges fainter than about 0.03 are smoothed away.
GUIDED_EPSILON = 1e-3


def fuse(distances: Sequence[torch.Tensor], typical: Sequence[torch.Tensor], support: float) -> torch.Tensor:
    """Join the distances at several grids into one map of evidence at the finest.

    With ``e_g = d_g^2 / m_g``, the squared Mahalanobis distances of grid g over their typical value, lifted to the
    finest grid,

        s = log(1 + e_G) + sum over g < G of log(1 + min(e_g, c e_{g+1})).

    ``log(1 + d^2 / m)`` is the log-density of a Student t distribution up to constants: leave-one-out distances have
    heavy tails, and a sum of d^2 would trust a single outlier. The minimum lets a fine grid speak only where the next
    coarser one supports it: c = 0 is the coarsest grid alone, infinity all grids in full.

    Args:
        distances: (B, h, w) of each grid, from fine to coarse.
        typical: m_g of each grid.
        support: c.

    Returns:
        (B, h, w) at the finest grid.
    """
    fine = distances[0].shape[-2:]
    # d * d, and divided before it is lifted: OpenVINO leaves these operations as they are, see export.openvino_model.
    evidence = [lift(d * d / m, fine) for d, m in zip(distances, typical, strict=True)]
    total = torch.log1p(evidence[-1])
    for own, coarser in pairwise(evidence):
        total = total + torch.log1p(own if math.isinf(support) else torch.minimum(own, support * coarser))
    return total


def damp(anomaly_map: torch.Tensor, alarm: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
    """Let the evidence for the whole photo decide how far its map may rise above what good photos show.

    ``s' = min(s, t) + w max(s - t, 0)``: where the photo as a whole looks good, w is small, and the map is nearly flat
    above t. The order of the pixels of one photo stays.

    Args:
        anomaly_map: s, (B, 1, H, W).
        alarm: w, (B, 1), from 0 for a photo that looks good to 1.
        level: t.
    """
    # Of operations that OpenVINO leaves as they are.
    return anomaly_map + (alarm - 1.0)[..., None, None] * (torch.maximum(anomaly_map, level) - level)


def lift(grid: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Interpolate maps (B, h, w) bilinearly to a finer grid's height and width."""
    if grid.shape[-2:] == tuple(size):
        return grid
    rows, columns = (_axis_lift(a, b).to(grid.device) for a, b in zip(grid.shape[-2:], size, strict=True))
    return rows @ grid @ columns.mT


def grey_photo(images: torch.Tensor) -> torch.Tensor:
    """Return grey photos (B, 1, H, W) in [0, 1] of normalised images (B, 3, H, W)."""
    return unnormalised(images).mean(dim=1, keepdim=True)


def unnormalised(images: torch.Tensor) -> torch.Tensor:
    """Return images (B, 3, H, W), RGB in [0, 1], of normalised ones."""
    return images.float() * IMAGENET_STD.to(images.device) + IMAGENET_MEAN.to(images.device)


def guide(anomaly_map: torch.Tensor, photo: torch.Tensor, radius: int) -> torch.Tensor:
    """Let the edges of anomaly maps (B, 1, H, W) follow those of the photos (He et al., TPAMI 2013, guided filter).

    Args:
        anomaly_map: finished maps.
        photo: (B, 1, H, W) grey photos in [0, 1].
        radius: of the window, in pixels.
    """
    height, width = anomaly_map.shape[-2:]
    rows, columns = (_axis_box(side, radius).to(anomaly_map.device) for side in (height, width))

    def mean(pixels: torch.Tensor) -> torch.Tensor:
        return rows @ pixels @ columns.mT

    # Written without differences and quotients, which OpenVINO makes something else of, see export.openvino_model.
    photo_mean, map_mean = mean(photo), mean(anomaly_map)
    minus_mean = -1.0 * photo_mean
    variance = mean(photo * photo) + photo_mean * minus_mean
    covariance = mean(photo * anomaly_map) + minus_mean * map_mean
    slope = covariance * (-(variance + GUIDED_EPSILON).log()).exp()
    return mean(slope) * photo + mean(map_mean + slope * minus_mean)


class SmoothUpsample(nn.Module):
    """Anomalib's bilinear up-sampling and Gaussian blur, as two small matrix products.

    Both steps are linear and separable, so together they are ``U_h D U_w^T`` with U the matrix that up-samples and
    blurs one axis. For 64x64 to 256x256 that takes 5 million multiplications an image where anomalib's dense 33x33
    kernel takes 71 million, and the result is the same to rounding.

    Args:
        sigma: standard deviation of the Gaussian in pixels of the image; 4 in the paper.
    """

    def __init__(self, sigma: float = 4.0) -> None:
        super().__init__()
        self.sigma = sigma
        self._matrices: dict[tuple[int, int, torch.device], torch.Tensor] = {}

    def forward(self, distances: torch.Tensor, image_size: tuple[int, int]) -> torch.Tensor:
        """Return anomaly maps (B, 1, H, W) for distances (B, 1, h, w)."""
        height, width = image_size
        rows = self._matrix(distances.shape[-2], height, distances.device)
        columns = self._matrix(distances.shape[-1], width, distances.device)
        return rows @ distances @ columns.mT

    def _matrix(self, source: int, target: int, device: torch.device) -> torch.Tensor:
        key = (source, target, device)
        if key not in self._matrices:
            self._matrices[key] = _axis_matrix(source, target, self.sigma).to(device)
        return self._matrices[key]


@torch.no_grad()
def _axis_matrix(source: int, target: int, sigma: float) -> torch.Tensor:
    """Return U (target, source), which up-samples and blurs one axis: the operations applied to unit vectors."""
    upsampled = F.interpolate(torch.eye(source)[None], size=target, mode="linear", align_corners=False)[0]
    # The two-dimensional kernel is an outer product, so its sum over one axis is the one-dimensional kernel.
    kernel = GaussianBlur2d(sigma=sigma).kernel.sum(dim=-1).view(1, 1, -1)
    padded = F.pad(upsampled[:, None], (kernel.shape[-1] // 2,) * 2, mode="reflect")
    return F.conv1d(padded, kernel)[:, 0].T.contiguous()


def _axis_box(side: int, radius: int) -> torch.Tensor:
    """Return (side, side): the mean over a window of one axis, whose borders are mirrored, of unit vectors."""
    padded = F.pad(torch.eye(side)[:, None], (radius, radius), mode="reflect")
    return F.avg_pool1d(padded, 2 * radius + 1, stride=1)[:, 0].T.contiguous()


def _axis_lift(source: int, target: int) -> torch.Tensor:
    """Return (target, source): what bilinear interpolation of one axis does to unit vectors."""
    return F.interpolate(torch.eye(source)[None], size=target, mode="linear", align_corners=False)[0].T.contiguous()
