"""Photos that show the same part without saying so: exact copies, and near ones such as two shots of one part."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from padim_bottle.files import sha256
from padim_bottle.model.calibration import MINIMUM_PARTS, mahalanobis_grams
from padim_bottle.model.gaussian import COVARIANCE_EPSILON

# Two photos at least this similar (see ``similarity``) are taken for two of one part. Of 60 and of 110 training bottles
# with a second photo each, moved by up to 2 pixels and up to 3 % brighter or darker, three quarters and nearly all are;
# of MVTec's 209 bottles alone three pairs are, of which the first (069 and 070, .82) differs by less than 1 % a pixel.
SIMILAR = 0.4


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


def near_copies(similarities: torch.Tensor) -> list[Copy]:
    """Return each photo that is similar to an earlier one, with the most similar of those.

    Args:
        similarities: (N, N), see ``similarity``.
    """
    if len(similarities) < MINIMUM_PARTS:
        return []
    most = similarities.tril(-1).max(dim=1)
    return [Copy(int(most.indices[i]), int(i), "near") for i in (most.values >= SIMILAR).nonzero().flatten()]


def similarity(embeddings: torch.Tensor) -> torch.Tensor:
    """Return how similar N photos are (N, N): the cosine of their embeddings as the Gaussians see them.

    Plain distances do not tell: a photo that was moved by two pixels is as far from its twin as from other bottles.
    What a twin does to the calibration is to share what no other photo has, and the Mahalanobis inner product
    ``(x_i - m)^T A^-1 (x_j - m)``, summed over positions, weighs just that. Photos of different parts are near 0.

    Args:
        embeddings: (N, P, d) of all channels at some positions.
    """
    count = len(embeddings)
    everyone = torch.arange(count, device=embeddings.device)[None]
    total = torch.zeros(count, count, device=embeddings.device)
    for position in range(embeddings.shape[1]):
        deltas = embeddings[:, position : position + 1] - embeddings[:, position].mean(dim=0)

        def covariance(freedom: int, deltas: torch.Tensor = deltas) -> torch.Tensor:
            scatter = deltas[:, 0].T @ deltas[:, 0]
            return (scatter / freedom + COVARIANCE_EPSILON * torch.eye(len(scatter), device=scatter.device))[None]

        total += mahalanobis_grams(deltas, covariance, everyone, max(1, count - 2))[0, 0].float()
    norms = total.diagonal().clamp_min(torch.finfo(total.dtype).tiny).sqrt()
    return total / norms / norms[:, None]
