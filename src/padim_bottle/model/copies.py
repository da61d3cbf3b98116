"""Photos that show the same part without saying so: exact copies, and near ones such as two shots of one part."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from padim_bottle.files import sha256
from padim_bottle.model.calibration import MINIMUM_PARTS
from padim_bottle.model.gaussian import COVARIANCE_EPSILON, precision_cholesky
from padim_bottle.model.store import PhotoStore

# Two photos at least this similar (see ``near_copies``) are taken for two of one part. ``tests/model/test_copies.py``
# holds it to 60 real bottles with a second photo each, moved by up to 2 pixels and up to 3 % brighter or darker.
SIMILAR = 0.4

# Photos that are compared at a time.
_BLOCK = 512


class Copy(NamedTuple):
    """Two photos of one part, by their indices, and how that shows: ``exact`` or ``near``."""

    first: int
    second: int
    kind: str


def exact_copies(paths: Sequence[str]) -> list[Copy]:
    """Return the files with the content of an earlier one (SHA-256), with that one; files that are gone are none."""
    by_size: dict[int, list[int]] = defaultdict(list)
    for index, path in enumerate(paths):
        if Path(path).is_file():
            by_size[Path(path).stat().st_size].append(index)
    found = []
    for candidates in by_size.values():
        first: dict[str, int] = {}
        for index in candidates if len(candidates) > 1 else ():
            digest = sha256(paths[index])
            if digest in first:
                found.append(Copy(first[digest], index, "exact"))
            first.setdefault(digest, index)
    return sorted(found)


def near_copies(likenesses: PhotoStore) -> list[Copy]:
    """Return each photo that is similar to an earlier one, with the most similar of those.

    Similarity is the cosine of embeddings as the Gaussians see them. Plain distances do not tell: a photo that was
    moved by two pixels is as far from its twin as from other bottles. What a twin does to the calibration is to share
    what no other photo has, and the Mahalanobis inner product ``(x_i - m)^T A^-1 (x_j - m)``, summed over positions,
    weighs just that. Photos of different parts are near 0.

    Memory grows with N only by what is returned: where there are more photos than channels, they are compared block by
    block.

    Args:
        likenesses: embeddings (N, P, d) of all channels at some positions.
    """
    count, (_, channels) = len(likenesses), likenesses.shape
    if count < MINIMUM_PARTS:
        return []
    if count < channels:
        best, index = _cosines_of_few(likenesses).tril(-1).max(dim=1)
        return [Copy(int(index[row]), row, "near") for row in (best >= SIMILAR).nonzero().flatten().tolist()]
    white = _whitened(likenesses)
    found = []
    for start in range(0, count, _BLOCK):
        rows = white.photos(slice(start, start + _BLOCK))
        best, index = torch.full((len(rows),), -torch.inf), torch.zeros(len(rows), dtype=torch.long)
        for first in range(0, start + 1, _BLOCK):
            cosines = rows @ (rows if first == start else white.photos(slice(first, first + _BLOCK))).mT
            if first == start:
                cosines = cosines.tril(-1)
            values, indices = cosines.max(dim=1)
            index = torch.where(values > best, first + indices, index)
            best = torch.maximum(best, values)
        similar = (best >= SIMILAR).nonzero().flatten().tolist()
        found += [Copy(int(index[row]), start + row, "near") for row in similar]
    return found


def _cosines_of_few(likenesses: PhotoStore) -> torch.Tensor:
    """Return the similarities (N, N) of N photos, fewer than channels: a third of the work.

    With D the deviations (N, d) at a position and ``lambda = (N - 1) eps``, ``D A^-1 D^T`` is ``(N - 1)`` times
    ``I - lambda (D D^T + lambda I)^-1``.
    """
    count, (positions, _) = len(likenesses), likenesses.shape
    ridge = COVARIANCE_EPSILON * (count - 1)
    products = positions * torch.eye(count, dtype=torch.float64)
    for position in range(positions):
        embedding = likenesses.block(slice(position, position + 1))[:, 0].double()
        delta = embedding - embedding.mean(dim=0)
        kernel = delta @ delta.mT
        kernel.diagonal().add_(ridge)
        products -= ridge * torch.cholesky_inverse(torch.linalg.cholesky(kernel))
    lengths = products.diagonal().clamp_min(1e-12).sqrt()
    return products / lengths / lengths[:, None]


def _whitened(likenesses: PhotoStore) -> PhotoStore:
    """Return N whitened embeddings, all positions in one row of length 1."""
    count = len(likenesses)
    means, factors = [], []
    for position in range(likenesses.shape[0]):
        embedding = likenesses.block(slice(position, position + 1))[:, 0].double()
        means.append(embedding.mean(dim=0))
        delta = embedding - means[-1]
        covariance = delta.mT @ delta / (count - 1)
        covariance.diagonal().add_(COVARIANCE_EPSILON)
        factors.append(precision_cholesky(covariance[None])[0])
    mean, factor = torch.stack(means), torch.stack(factors)
    white = PhotoStore()
    for start in range(0, count, _BLOCK):
        deltas = likenesses.photos(slice(start, start + _BLOCK)) - mean
        rows = torch.einsum("npd,pde->npe", deltas, factor).flatten(1)
        norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True).clamp_min(1e-12)
        white.append((rows / norms).float())
    return white
