"""Exact leave-one-out: a training image's distance to the Gaussians fitted without the part that it shows.

A training image's own distance is far too small, because it helped to fit the Gaussian it is measured by. Its
distance to the Gaussian fitted *without* it has a closed form, and so has that of a part which was photographed k
times: it must be left out whole, or its other photos vouch for it.

The ridge is a fixed scatter. k positions share a covariance (1 in the paper), each with a mean of its own. With their
scatter ``S = sum (x_ip - m_p)(x_ip - m_p)^T`` over N images and k positions and ``lambda = eps k (N - 1)``, PaDiM's
covariance ``S / (k (N - 1)) + eps I`` is ``W / (k (N - 1))`` with ``W = S + lambda I``. The Gaussian without the n
images of a part, of which ``r = N - n`` remain, has the same lambda. With the part's deviations ``D = [x_ip - m_p]``
(d x n k), ``1`` the vector of n ones and, for each of the positions, ``M = I + 1 1^T / r``:

    mean without the part         x_ip - m_{p,-G} = D_p v_i,   v_i = e_i + 1 / r
    covariance without the part   (W - sum_p D_p M D_p^T) / (k (r - 1))

so with ``T = D^T W^-1 D`` (n k x n k), and M and v_i block by block, Woodbury's formula gives

    d_ip^2 = k (r - 1) v_ip^T (T + T (M^-1 - T)^-1 T) v_ip,   M^-1 = I - 1 1^T / N,

and for k = n = 1, with ``t = (x_i - m)^T W^-1 (x_i - m)``,

    d_i^2 = (N - 2) (N / (N - 1))^2 t / (1 - N / (N - 1) t).

W is the model's own matrix but for a factor, so the one Cholesky decomposition that fits it serves every part as well.
"""

from collections.abc import Iterable

import torch

from padim_bottle.model.gaussian import COVARIANCE_EPSILON
from padim_bottle.model.parts import Parts


def leave_part_out_distances(deltas: torch.Tensor, factors: torch.Tensor, parts: Parts) -> torch.Tensor:
    """Return each image's Mahalanobis distances to the Gaussians fitted without the part that it shows.

    Args:
        deltas: (C, N k, d), embeddings less the means of all N images at C cells of k positions, see ``by_cell``.
        factors: (C, d, d), Cholesky factors of the precision of all N images, in the type to compute in.
        parts: of the N images.

    Returns:
        (C, N k) distances.
    """
    count = len(parts.names)
    cells, rows, features = deltas.shape
    shared = rows // count
    few = rows < features
    if few:
        # Fewer rows than features: with the Gram matrix K of all rows, T is a block of I - lambda (K + lambda I)^-1.
        ridge = COVARIANCE_EPSILON * shared * (count - 1)
        deltas = deltas.double()
        kernel = deltas @ deltas.mT
        kernel.diagonal(dim1=-2, dim2=-1).add_(ridge)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(kernel))
    else:
        white = torch.bmm(deltas.to(factors.dtype), factors) / (shared * (count - 1)) ** 0.5
    squares = torch.empty(cells, count, shared, device=deltas.device)
    for members in parts.by_size():
        members = members.to(deltas.device)  # (G, n)
        own = (members[..., None] * shared + torch.arange(shared, device=deltas.device)).flatten(1)  # (G, n k)
        if few:
            identity = torch.eye(own.shape[1], dtype=inverse.dtype, device=inverse.device)
            grams = identity - ridge * inverse[:, own[:, :, None], own[:, None, :]]
        elif own.shape[1] == 1:
            grams = white.square().sum(-1)[:, own[:, 0], None, None]
        else:
            grams = white[:, own] @ white[:, own].mT
        left_out = _left_out_squares(grams, count, shared)  # (C, G, n k)
        squares[:, members.flatten()] = left_out.unflatten(-1, (*members.shape[1:], shared)).flatten(1, 2).float()
    return squares.flatten(1).sqrt()


def leave_part_out_distances_of(
    measured: Iterable[torch.Tensor], deltas: torch.Tensor, factors: torch.Tensor, parts: Parts
) -> torch.Tensor:
    """Return the distances of what images show elsewhere to the Gaussians fitted without the part that they show.

    With ``f_i`` measured instead of ``D e_i``, ``delta_i = f_i + D 1 / r`` and ``g_i = D^T W^-1 delta_i``,

        d_i^2 = (r - 1) (delta_i^T W^-1 delta_i + g_i^T (M^-1 - T)^-1 g_i).

    Args:
        measured: M times (P, N, d), other embeddings of the N images less the means of all N images at P positions.
        deltas: (P, N, d), those that the Gaussians were fitted to, less the same means.
        factors: (P, d, d), Cholesky factors of the precision of all N images, in the type to compute in.
        parts: of the N images.

    Returns:
        (M, P, N) distances.
    """
    count = len(parts.names)

    def whitened(rows: torch.Tensor) -> torch.Tensor:
        return torch.bmm(rows.to(factors.dtype), factors) / (count - 1) ** 0.5

    own, found = whitened(deltas), []
    for other in map(whitened, measured):
        squares = torch.empty(own.shape[:2], device=own.device)
        for members in parts.by_size():
            members = members.to(own.device)  # (G, n)
            rest = count - members.shape[1]
            rows = own[:, members]  # (P, G, n, d)
            delta = other[:, members] + rows.sum(dim=2, keepdim=True) / rest
            bound = torch.eye(members.shape[1], dtype=own.dtype, device=own.device) - 1 / count - rows @ rows.mT
            g = rows @ delta.mT
            left_out = delta.square().sum(-1) + (g * torch.linalg.solve(bound, g)).sum(-2)
            squares[:, members.flatten()] = ((rest - 1) * left_out).clamp_min(0).flatten(1).float()
        found.append(squares.sqrt())
    return torch.stack(found)


def dtype_for(rows: int, features: int) -> torch.dtype:
    """Return in which type the factors of N images, each with k rows a cell, must be computed.

    With few images ``1 - N / (N - 1) t`` is close to 0, and single precision would lose digits of the difference.
    """
    return torch.float64 if features <= rows < 2 * features else torch.float32


def _left_out_squares(grams: torch.Tensor, count: int, shared: int) -> torch.Tensor:
    """Return (C, G, n k) squared distances of T; ``T + T (M^-1 - T)^-1 T = M^-1 (M^-1 - T)^-1 T``."""
    size = grams.shape[-1]
    rest = count - size // shared
    if size == 1:
        scale = count / (count - 1)
        t = grams[..., 0].clamp_min(0)
        return (rest - 1) * scale**2 * t / (1 - scale * t).clamp_min(torch.finfo(t.dtype).eps)
    identity = torch.eye(size, dtype=grams.dtype, device=grams.device)
    # Images of a part meet at each position alone.
    ones = torch.eye(shared, dtype=grams.dtype, device=grams.device).repeat(size // shared, size // shared)
    bound = identity - ones / count
    v = identity + ones / rest
    inner = bound @ torch.linalg.solve(bound - grams, grams)
    return shared * (rest - 1) * (v @ inner @ v).diagonal(dim1=-2, dim2=-1).clamp_min(0)
