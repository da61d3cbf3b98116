"""From the backbone's layers to one embedding at each position of a grid."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

Reduction = Literal["random", "orthogonal"]


class PatchEmbedding(nn.Module):
    """Joins some layers at the positions of one of them, and keeps d of their channels or projects them to d.

    Args:
        layers: names, from shallow to deep.
        channels: how many channels each has.
        n_features: d; all channels are kept where it equals their number.
        seed: decides which channels are kept, or the projection.
        reduction: ``random`` keeps d channels (Defard et al. 2021); ``orthogonal`` projects all channels by a
            random semi-orthogonal matrix (Kim et al. 2021, arXiv 2105.14737).
        neighborhood: side of the square of positions that each layer's features are averaged over before they are
            joined; 1 is PaDiM's, 3 PatchCore's (Roth et al. 2022, section 3.1).
        pooled: the grid is that of the deepest layer, and the others are averaged over its cells; else it is that of
            the shallowest, and the others are up-sampled (the paper's).
    """

    def __init__(
        self,
        layers: Sequence[str],
        channels: Sequence[int],
        n_features: int,
        seed: int = 0,
        reduction: Reduction = "random",
        neighborhood: int = 1,
        pooled: bool = False,
    ) -> None:
        super().__init__()
        self.layers = list(layers)
        self.channels = list(channels)
        self.n_features = n_features
        self.reduction = reduction
        self.neighborhood = neighborhood
        self.pooled = pooled
        self.is_random = n_features < sum(channels) or (reduction == "orthogonal" and not pooled)
        generator = torch.Generator().manual_seed(seed)
        idx = torch.arange(sum(channels))
        if reduction == "random" or not self.is_random:
            if self.is_random:
                # Sorted: the order changes no distance, and each layer's channels then stand together.
                idx = torch.randperm(len(idx), generator=generator)[:n_features].sort().values
            self.register_buffer("projection", torch.empty(0))
        else:
            idx = torch.empty(0, dtype=torch.long)
            gaussian = torch.randn(sum(channels), n_features, generator=generator, dtype=torch.float64)
            q, r = torch.linalg.qr(gaussian)
            # Signs that make the decomposition unique make q uniform over such matrices (Mezzadri 2007).
            self.register_buffer("projection", (q * r.diagonal().sign()).float())
        self.register_buffer("idx", idx)
        self.idx: torch.Tensor
        self.projection: torch.Tensor
        # How many channels of each layer are kept: counted when first needed, as numbers that tracing can rely on.
        self._kept: list[int] | None = None

    def grid(self, features: Mapping[str, torch.Tensor]) -> tuple[int, int]:
        """Return the height and width of the grid of positions."""
        height, width = features[self.layers[-1 if self.pooled else 0]].shape[-2:]
        return height, width

    def forward(self, features: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return embeddings (B, P, d), float32, of the layers' maps (B, C, h, w).

        Reduction comes before up-sampling and after pooling: all of them act on channels and positions separately, so
        the fewest numbers are ever carried.
        """
        grid = self.grid(features)
        if self._kept is None:
            ends = torch.tensor([0, *self.channels], device=self.idx.device).cumsum(0)
            self._kept = torch.searchsorted(self.idx, ends).diff().tolist()
        projected = self.projection.numel() > 0
        parts = []
        start = first = 0
        for layer, channels, kept in zip(self.layers, self.channels, self._kept, strict=True):
            feature = features[layer].float()
            if self.pooled:
                feature = mean_pool(feature, grid)
            # Channels last: (B, h, w, C) is how the features lie in memory.
            feature = feature.permute(0, 2, 3, 1)
            if projected:
                feature = feature @ self.projection[start : start + channels]
            elif kept < channels:
                # Sorted, so a layer's channels stand together.
                feature = feature[..., self.idx[first : first + kept] - start]
            start, first = start + channels, first + kept
            feature = feature.permute(0, 3, 1, 2)
            if self.neighborhood > 1 and feature.shape[1]:
                feature = F.avg_pool2d(
                    feature, self.neighborhood, stride=1, padding=self.neighborhood // 2, count_include_pad=False
                )
            if feature.shape[-2:] != grid and feature.shape[1]:
                feature = F.interpolate(feature, size=grid, mode="nearest")
            parts.append(feature.permute(0, 2, 3, 1).flatten(1, 2))
        return sum(parts[1:], start=parts[0]) if projected else torch.cat(parts, dim=-1)

    def _load_from_state_dict(self, state_dict: dict[str, torch.Tensor], prefix: str, *args: object) -> None:
        for name in ("idx", "projection"):
            value = state_dict.setdefault(prefix + name, torch.empty(0))
            setattr(self, name, torch.empty_like(value, device=getattr(self, name).device))
        self._kept = None
        super()._load_from_state_dict(state_dict, prefix, *args)


def mean_pool(feature: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Average maps (B, C, h, w) over the cells of a coarser grid, as ``adaptive_avg_pool2d`` does, at any sizes.

    Where a cell is a whole number of positions that is plain average pooling; elsewhere two small matrix products,
    which every exported format has.
    """
    height, width = feature.shape[-2:]
    if (height, width) == grid:
        return feature
    if height % grid[0] == 0 and width % grid[1] == 0:
        return F.avg_pool2d(feature, (height // grid[0], width // grid[1]))
    rows, columns = (_axis_means(a, b).to(feature.device) for a, b in ((height, grid[0]), (width, grid[1])))
    return rows @ feature @ columns.mT


def _axis_means(source: int, target: int) -> torch.Tensor:
    """Return (target, source): what pooling one axis does to unit vectors."""
    return F.adaptive_avg_pool1d(torch.eye(source)[None], target)[0].T.contiguous()
