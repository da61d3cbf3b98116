"""From the backbone's layers to one embedding at each position of a grid."""

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812


class PatchEmbedding(nn.Module):
    """Joins some layers at the positions of one of them, and keeps d of their channels.

    Args:
        channels: how many channels each layer has, from shallow to deep.
        n_features: d; all channels are kept where it equals their number.
        seed: decides which channels are kept.
        pooled: the grid is that of the deepest layer, and the others are averaged over its cells; else it is that of
            the shallowest, and the others are up-sampled (the paper's).
        side: of a pooled grid, the largest number of positions a side; ``None`` for any.
    """

    def __init__(
        self,
        channels: Mapping[str, int],
        n_features: int,
        seed: int = 0,
        pooled: bool = False,
        side: int | None = None,
    ) -> None:
        super().__init__()
        self.channels = dict(channels)
        self.n_features = n_features
        self.pooled = pooled
        self.side = side
        total = sum(channels.values())
        self.is_random = n_features < total
        idx = torch.arange(total)
        if self.is_random:
            # Sorted: the order changes no distance, and each layer's channels then stand together.
            generator = torch.Generator().manual_seed(seed)
            idx = torch.randperm(total, generator=generator)[:n_features].sort().values
        self.register_buffer("idx", idx)
        self.idx: torch.Tensor
        # How many channels of each layer are kept: counted when first needed, as numbers that tracing can rely on.
        self._kept: list[int] | None = None

    def grid(self, features: Mapping[str, torch.Tensor]) -> tuple[int, int]:
        """Return the height and width of the grid of positions."""
        height, width = features[list(self.channels)[-1 if self.pooled else 0]].shape[-2:]
        longer = max(height, width)
        if self.side is None or self.side >= longer:
            return height, width
        return max(1, round(height * self.side / longer)), max(1, round(width * self.side / longer))

    def forward(self, features: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return embeddings (B, P, d), float32, of the layers' maps (B, C, h, w).

        Channels are chosen before up-sampling and after pooling: all of these act on channels and positions
        separately, so the fewest numbers are ever carried.
        """
        grid = self.grid(features)
        if self._kept is None:
            ends = torch.tensor([0, *self.channels.values()], device=self.idx.device).cumsum(0)
            self._kept = torch.searchsorted(self.idx, ends).diff().tolist()
        parts = []
        start = first = 0
        for (layer, channels), kept in zip(self.channels.items(), self._kept, strict=True):
            feature = features[layer].float()
            if self.pooled:
                feature = mean_pool(feature, grid)
            # Channels last: (B, h, w, C) is how the features lie in memory.
            feature = feature.permute(0, 2, 3, 1)
            if kept < channels:
                feature = feature[..., self.idx[first : first + kept] - start]
            start, first = start + channels, first + kept
            if feature.shape[1:3] != grid and kept:
                feature = F.interpolate(feature.permute(0, 3, 1, 2), size=grid, mode="nearest").permute(0, 2, 3, 1)
            parts.append(feature.flatten(1, 2))
        return torch.cat(parts, dim=-1)

    def _load_from_state_dict(self, state_dict: dict[str, torch.Tensor], prefix: str, *args: object) -> None:
        # Checkpoints of before projections went have an empty one.
        state_dict.pop(prefix + "projection", None)
        if prefix + "idx" in state_dict:
            self.idx = torch.empty_like(state_dict[prefix + "idx"], device=self.idx.device)
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
