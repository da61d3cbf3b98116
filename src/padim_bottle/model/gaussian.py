"""One multivariate Gaussian per patch position: PaDiM's memory of good bottles.

Defard et al. 2021, eq. 1: at each of P positions, the d features of N training images have mean m and
covariance ``S / (N - 1) + eps I``, with the scatter S of the images. Anomalib collects all embeddings, loops over
positions in Python and inverts each covariance; here many positions are fitted together, and what is kept is the
Cholesky factor C of the precision matrix (the inverse covariance is ``C C^T``), so that a Mahalanobis distance is a
norm: ``d(x) = || C^T (x - m) ||``.

Neighbouring positions may share a covariance, each with a mean of its own: with k positions a cell, S is the sum over
the cell and the images, and the covariance ``S / (k (N - 1)) + eps I``.
"""

import logging
from typing import Any, NamedTuple

import torch
from torch import nn

from padim_bottle.errors import UserError

logger = logging.getLogger(__name__)

# anomalib adds 0.01 (the paper's eps) and then 1e-5 to the diagonal.
COVARIANCE_EPSILON = 0.01 + 1e-5

# Columns of the factors that are kept together.
WIDTH = 25

# Cells whose factors are whole in memory at a time.
_CELLS = 256


class Fitted(NamedTuple):
    """Gaussians of some cells, and the training images beside them.

    Attributes:
        mean: (p, d), at each position.
        deltas: (C, N k, d), the embeddings less their means, see ``by_cell``.
        factors: (C, d, d), Cholesky factors of the precision, not rounded to ``storage_dtype``.
    """

    mean: torch.Tensor
    deltas: torch.Tensor
    factors: torch.Tensor


class PatchGaussians(nn.Module):
    """Mean and precision of a Gaussian at each patch position.

    A distance takes each factor once, so scoring is as fast as memory delivers them, and their zeros are neither kept
    nor read: cut into blocks of ``WIDTH`` columns, of which each starts at its first row that is not zero, they take
    ``4 P d (d + WIDTH) / (2 k)`` bytes (102 MB for P = 4096, d = 100, k = 1). In a checkpoint the lower triangle is
    kept, in ``storage_dtype``.

    Args:
        shared: k, positions that share a covariance: the first k of them, the next k, and so on.
        storage_dtype: ``torch.float16`` or ``torch.float32``, for the precision factors in a checkpoint. With
            half precision the factors in memory are rounded as well, so that the model that is tested is the
            model that is saved.
    """

    def __init__(self, storage_dtype: torch.dtype = torch.float32, shared: int = 1) -> None:
        super().__init__()
        self.storage_dtype = storage_dtype
        self.shared = shared
        self.register_buffer("mean", torch.empty(0))  # (P, d)
        self.mean: torch.Tensor
        # Of each block of columns its first; the block (P / k, d - first, WIDTH) is a buffer of its own.
        self._starts = range(0)

    @property
    def inv_covariance(self) -> torch.Tensor:
        """Inverse covariance matrices (P / k, d, d), as anomalib's ``MultiVariateGaussian`` keeps them."""
        factors = self._factors(slice(None))
        return factors @ factors.mT

    def allocate(self, positions: int, features: int) -> None:
        """Make room for the Gaussians of so many positions, block by block to be fitted."""
        self.reset()
        self.mean = self.mean.new_empty(positions, features)
        self._starts = range(0, features, WIDTH)
        for start in self._starts:
            block = self.mean.new_empty(positions // self.shared, features - start, min(WIDTH, features - start))
            self.register_buffer(f"columns_{start}", block, persistent=False)

    def hold_as(self, dtype: torch.dtype) -> None:
        """Hold the factors in another type, and so export them; distances are single precision."""
        for start in self._starts:
            self.register_buffer(f"columns_{start}", self._columns(start).to(dtype), persistent=False)

    def fit(self, embedding: torch.Tensor, start: int = 0, dtype: torch.dtype = torch.float32) -> Fitted:
        """Fit the Gaussians of some cells.

        Args:
            embedding: (N, p, d) of the N training images at p positions; it is overwritten.
            start: the first of these positions.
            dtype: to compute in.

        Raises:
            UserError: the embedding holds NaN or infinity.
        """
        count, positions, _ = embedding.shape
        # From the first image on, so that a large common offset costs no digits.
        first = embedding[0].clone()
        shift = embedding.sub_(first).mean(dim=0)
        mean = first + shift
        if not torch.isfinite(mean).all():
            raise UserError("The backbone's features hold NaN or infinity: check the images and the weights.")
        deltas = by_cell(embedding.sub_(shift), self.shared)
        rows = deltas.to(dtype)
        covariance = torch.bmm(rows.mT, rows).div_(self.shared * (count - 1))
        covariance.diagonal(dim1=-2, dim2=-1).add_(COVARIANCE_EPSILON)
        factors = precision_cholesky(covariance)
        self.mean[start : start + positions] = mean
        self._keep(factors, start // self.shared)
        return Fitted(mean, deltas, factors)

    def reset(self) -> None:
        """Drop the Gaussians."""
        self.mean = self.mean.new_empty(0)
        for start in self._starts:
            delattr(self, f"columns_{start}")
        self._starts = range(0)

    def distance(self, embedding: torch.Tensor) -> torch.Tensor:
        """Return the Mahalanobis distances (B, P) of embeddings (B, P, d); paper, eq. 2."""
        delta = by_cell(embedding - self.mean, self.shared)
        parts = [torch.bmm(delta[..., start:], self._columns(start).to(delta.dtype)) for start in self._starts]
        return by_image(torch.cat(parts, dim=-1).square().sum(dim=-1).sqrt(), self.shared)

    def _columns(self, start: int) -> torch.Tensor:
        return self.get_buffer(f"columns_{start}")

    def _keep(self, factors: torch.Tensor, cell: int) -> None:
        """Keep the factors (C, d, d) of some cells."""
        for start in self._starts:
            columns = factors[:, start:, start : start + WIDTH]
            # Rounded: the model that is tested is the model that is saved.
            self._columns(start)[cell : cell + len(factors)] = columns.to(self.storage_dtype)

    def _factors(self, cells: slice) -> torch.Tensor:
        """Return the factors (C, d, d) of some cells."""
        blocks = [self._columns(start)[cells] for start in self._starts]
        return torch.cat(
            [nn.functional.pad(block, (0, 0, self.mean.shape[-1] - block.shape[1], 0)) for block in blocks], -1
        )

    def _save_to_state_dict(self, destination: dict[str, torch.Tensor], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        packed = self.mean.new_empty(0)
        if self.mean.numel():
            positions, features = self.mean.shape
            packed = packed.new_empty(
                positions // self.shared, features * (features + 1) // 2, dtype=self.storage_dtype
            )
            for start in range(0, len(packed), _CELLS):
                cells = slice(start, start + _CELLS)
                packed[cells] = pack_lower(self._factors(cells))
        destination[prefix + "precision_cholesky"] = packed

    def _load_from_state_dict(self, state_dict: dict[str, torch.Tensor], prefix: str, *args: Any) -> None:
        mean, packed = state_dict.get(prefix + "mean"), state_dict.pop(prefix + "precision_cholesky", None)
        if packed is None:
            missing_keys = args[2]
            missing_keys.append(prefix + "precision_cholesky")
        elif mean is not None:
            self.reset()
            if mean.numel():
                self.storage_dtype = packed.dtype
                self.allocate(*mean.shape)
                for start in range(0, len(packed), _CELLS):
                    self._keep(unpack_lower(packed[start : start + _CELLS].float(), mean.shape[-1]), start)
        super()._load_from_state_dict(state_dict, prefix, *args)


def by_cell(embedding: torch.Tensor, shared: int) -> torch.Tensor:
    """Return embeddings (B, P, d) as the rows (P / k, B k, d) of the cells of k positions, image by image."""
    if shared == 1:
        return embedding.transpose(0, 1)
    batch, positions, features = embedding.shape
    rows = embedding.reshape(batch, positions // shared, shared, features).transpose(0, 1)
    return rows.reshape(positions // shared, batch * shared, features)


def by_image(distances: torch.Tensor, shared: int) -> torch.Tensor:
    """Return distances (P / k, B k) of the rows of ``by_cell`` as (B, P)."""
    if shared == 1:
        return distances.transpose(0, 1)
    return distances.unflatten(1, (-1, shared)).transpose(0, 1).flatten(1)


def precision_cholesky(covariance: torch.Tensor) -> torch.Tensor:
    """Return lower-triangular C with ``C C^T`` the inverse of each covariance matrix.

    With J the exchange matrix (which reverses the order of rows), ``J S J = L L^T`` gives
    ``S^-1 = (J L^-T J) (J L^-T J)^T``, and ``J L^-T J`` is lower triangular: one Cholesky decomposition and one
    triangular inverse, no general inverse.

    Args:
        covariance: (P, d, d), symmetric. Where it is not positive definite, jitter is added to the diagonal
            and a warning names how much.

    Raises:
        UserError: the matrices hold NaN or infinity.
    """
    flipped = covariance.flip(-1, -2)
    factor, failed = torch.linalg.cholesky_ex(flipped)
    jitter = 1e-6
    while failed.any():
        if not torch.isfinite(covariance).all():
            raise UserError("The covariance of the features holds NaN or infinity: check the images and the weights.")
        bad = failed.nonzero().squeeze(-1)
        scale = flipped[bad].diagonal(dim1=-2, dim2=-1).mean(-1).abs()
        logger.warning(
            "%d of %d covariance matrices are not positive definite: adding %.0e of their mean variance (%.3g) "
            "to their diagonals.",
            len(bad), len(failed), jitter, scale.mean().item(),
        )  # fmt: skip
        mended = flipped[bad].clone()
        mended.diagonal(dim1=-2, dim2=-1).add_(jitter * scale[:, None])
        factor[bad], failed[bad] = torch.linalg.cholesky_ex(mended)
        jitter *= 10
    identity = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
    inverse = torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=False)
    return inverse.mT.flip(-1, -2)


def pack_lower(matrices: torch.Tensor) -> torch.Tensor:
    """Return the lower triangles (P, d (d + 1) / 2) of matrices (P, d, d), row by row."""
    rows, columns = torch.tril_indices(*matrices.shape[-2:], device=matrices.device)
    return matrices[:, rows, columns]


def unpack_lower(packed: torch.Tensor, size: int) -> torch.Tensor:
    """Return matrices (P, d, d) with the given lower triangles and zeros above."""
    rows, columns = torch.tril_indices(size, size, device=packed.device)
    matrices = packed.new_zeros(len(packed), size, size)
    matrices[:, rows, columns] = packed
    return matrices
