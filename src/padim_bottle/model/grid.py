"""One grid of positions: an embedding and a Gaussian at each of them."""

import torch
from torch import nn

from padim_bottle.errors import UserError
from padim_bottle.model.calibration import dtype_for, leave_part_out_distances
from padim_bottle.model.embedding import PatchEmbedding
from padim_bottle.model.gaussian import PatchGaussians
from padim_bottle.model.parts import Parts
from padim_bottle.model.store import PhotoStore

# Positions per block while fitting: bounds the working memory to about 64 (N + 6 d) d numbers.
BLOCK = 64


class PatchGrid(nn.Module):
    """Collects embeddings while training, fits a Gaussian at each position, and measures distances to them.

    Args:
        embedding: how the backbone's layers are joined.
        storage_dtype: of the precision factors in a checkpoint.

    Attributes:
        typical: mean of the training images' squared leave-one-out distances; not a number before the calibration.
    """

    def __init__(self, embedding: PatchEmbedding, storage_dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.embedding = embedding
        self.gaussian = PatchGaussians(storage_dtype)
        self.embeddings = PhotoStore()
        self.shape: tuple[int, int] = (0, 0)
        self.register_buffer("typical", torch.tensor(torch.nan))
        self.typical: torch.Tensor

    def reset(self) -> None:
        """Drop what was collected and fitted."""
        self.gaussian.reset()
        self.embeddings.clear()
        self.typical.fill_(torch.nan)

    def collect(self, features: dict[str, torch.Tensor], *, keep: bool) -> torch.Tensor:
        """Add a batch to the statistics, keep it if it is to be measured again, and return its embeddings."""
        self.shape = self.embedding.grid(features)
        embedding = self.embedding(features)
        self.gaussian.update(embedding)
        if keep:
            self.embeddings.append(embedding)
        return embedding

    def distance(self, features: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the Mahalanobis distances (B, h, w) of a batch."""
        return self.gaussian.distance(self.embedding(features)).unflatten(1, self.embedding.grid(features))

    def fit(self, parts: Parts | None) -> torch.Tensor | None:
        """Turn the statistics into Gaussians, block by block.

        Args:
            parts: the parts that the N training images show; ``None`` to fit alone.

        Returns:
            (N, h, w) distances of each image to the Gaussians fitted without its part, if asked for.

        Raises:
            UserError: too few training images, or too few parts.
        """
        gaussian = self.gaussian
        if gaussian.count < 2:
            raise UserError(f"PaDiM needs at least 2 training images to estimate a covariance, found {gaussian.count}.")
        positions, features = gaussian.mean.shape
        dtype = torch.float32 if parts is None else dtype_for(gaussian.count, features, gaussian.mean.device)
        distances = None if parts is None else torch.empty(gaussian.count, positions, device=gaussian.mean.device)
        for start in range(0, positions, BLOCK):
            block = slice(start, start + BLOCK)
            factors = gaussian.factorize(block, dtype)
            if parts is not None and distances is not None:
                deltas = self.embeddings.block(block).to(gaussian.mean.device).sub_(gaussian.mean[block])
                distances[:, block] = leave_part_out_distances(deltas, factors, parts)
        return None if distances is None else distances.unflatten(1, self.shape)
