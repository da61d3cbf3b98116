"""One grid of positions: an embedding at each of them, and a Gaussian at each of them or of their cells."""

from collections.abc import Sequence
from functools import cache, reduce
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import nn

from padim_bottle.errors import UserError
from padim_bottle.model.area import touched
from padim_bottle.model.embedding import PatchEmbedding
from padim_bottle.model.gaussian import PatchGaussians, by_image
from padim_bottle.model.leave_out import dtype_for, leave_part_out_distances, leave_part_out_distances_of
from padim_bottle.model.parts import Parts
from padim_bottle.model.store import PhotoStore

# Bytes of working memory while fitting: so many cells are fitted together as it has room for.
FIT_BUDGET = 1 << 27


class PatchGrid(nn.Module):
    """Collects embeddings while training, fits the Gaussians, and measures distances to them.

    Args:
        embedding: how the backbone's layers are joined.
        storage_dtype: of the precision factors in a checkpoint.
        share: positions a side of the cells that share a covariance, see ``PatchGaussians``.
        tolerance: an embedding is as far as from the nearest Gaussian so many positions around its own; needs a
            ``share`` of 1.

    Attributes:
        area: (H, W), the pixels of an image that count; ``None`` for all. Positions that hold none of them have no
            Gaussian, and the distance of the nearest position that has one.
        typical: mean of the training images' squared leave-one-out distances; not a number before the calibration.
    """

    def __init__(
        self,
        embedding: PatchEmbedding,
        storage_dtype: torch.dtype = torch.float32,
        share: int = 1,
        tolerance: int = 0,
    ) -> None:
        super().__init__()
        self.embedding = embedding
        self.share = share
        self.tolerance = tolerance
        self.gaussian = PatchGaussians(storage_dtype, share**2)
        self.embeddings = PhotoStore()
        self.shape: tuple[int, int] = (0, 0)
        self.area: NDArray[np.bool_] | None = None
        self._layouts: dict[tuple[int, int], Layout] = {}
        self.register_buffer("typical", torch.tensor(torch.nan))
        self.typical: torch.Tensor

    def look_at(self, area: NDArray[np.bool_] | None) -> None:
        """Let only an area (H, W) of the images count."""
        self.area = area
        self._layouts.clear()

    def reset(self) -> None:
        """Drop what was collected and fitted."""
        self.gaussian.reset()
        self.embeddings.clear()
        self.typical.fill_(torch.nan)

    def collect(self, features: dict[str, torch.Tensor]) -> torch.Tensor:
        """Keep the embeddings of a batch, and return them."""
        self.shape = self.embedding.grid(features)
        embedding = self._in_cells(self.embedding(features), self.shape)
        self.embeddings.append(embedding)
        return embedding

    def distance(self, features: dict[str, torch.Tensor]) -> torch.Tensor:
        """Return the Mahalanobis distances (B, h, w) of a batch."""
        shape = self.embedding.grid(features)
        embedding = self._in_cells(self.embedding(features), shape)
        if self.tolerance:
            moves = _moves(*shape, self.tolerance)
            # One call: in an exported model every factor is then there once.
            distances = self.gaussian.distance(torch.cat([_at(embedding, move.shown) for move in moves]))
            return self._nearest(distances.unflatten(0, (len(moves), -1)), moves).unflatten(1, shape)
        return self._in_place(self.gaussian.distance(embedding), shape)

    def fit(self, parts: Parts | None) -> torch.Tensor | None:
        """Fit the Gaussians to the embeddings that were collected, some cells at a time.

        Args:
            parts: the parts that the N training images show; ``None`` to fit alone.

        Returns:
            (N, h, w) distances of each image to the Gaussians fitted without its part, if asked for.

        Raises:
            UserError: too few training images, or too few parts.
        """
        gaussian, device, count = self.gaussian, self.typical.device, len(self.embeddings)
        if count < 2:
            raise UserError(f"PaDiM needs at least 2 training images to estimate a covariance, found {count}.")
        positions, features = self.embeddings.shape
        shared = gaussian.shared
        rows = count * shared
        dtype = torch.float32 if parts is None else dtype_for(rows, features)
        if parts is not None and self.tolerance and rows < features:
            dtype = torch.float64
        moves = _moves(*self.shape, self.tolerance)
        distances = None if parts is None else torch.empty(len(moves), count, positions, device=device)
        # In double precision: embeddings twice, some matrices of d x d, and of rows x rows if these are fewer.
        numbers = 2 * rows * features + 6 * features**2 + (3 * rows**2 if rows < features else 0)
        step = max(1, FIT_BUDGET // (8 * numbers)) * shared
        gaussian.allocate(positions, features)
        for start in range(0, positions, step):
            block = slice(start, start + step)
            mean, deltas, factors = gaussian.fit(self.embeddings.block(block).to(device), start, dtype)
            if parts is None or distances is None:
                continue
            if not self.tolerance:
                distances[0, :, block] = by_image(leave_part_out_distances(deltas, factors, parts), shared)
                continue
            reach = np.stack([move.shown[block] for move in moves])
            near = self.embeddings.block(slice(reach.min(), reach.max() + 1)).to(device)
            measured = (_at(near, shown - reach.min()).sub_(mean).transpose(0, 1) for shown in reach)
            distances[:, :, block] = leave_part_out_distances_of(measured, deltas, factors, parts).mT
        if distances is None:
            return None
        nearest = self._nearest(distances, moves) if self.tolerance else distances[0]
        return self._in_place(nearest, self.shape)

    @staticmethod
    def _nearest(distances: torch.Tensor, moves: Sequence["Move"]) -> torch.Tensor:
        """Return the smallest (B, P) of the distances (moves, B, P) of what each showed the Gaussians."""
        found = [
            _at(moved, move.judged) + torch.from_numpy(move.outside).to(moved.device)
            for moved, move in zip(distances, moves, strict=True)
        ]
        return reduce(torch.minimum, found)

    def layout(self, shape: tuple[int, int]) -> "Layout":
        """Return which positions of a grid (h, w) have Gaussians, and where they lie."""
        if shape not in self._layouts:
            self._layouts[shape] = _layout(*shape, self.share, self.area)
        return self._layouts[shape]

    def _in_cells(self, embedding: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
        """Return embeddings (B, h w, d) cell by cell, (B, P, d)."""
        if self.share == 1 and self.area is None:
            return embedding
        return _at(embedding, self.layout(shape).shown)

    def _in_place(self, distances: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
        """Return distances (B, P), cell by cell, as (B, h, w)."""
        if self.share > 1 or self.area is not None:
            distances = _at(distances, self.layout(shape).placed)
        return distances.unflatten(1, shape)


def _at(values: torch.Tensor, positions: NDArray[np.int64]) -> torch.Tensor:
    """Return values (B, P, ...) at other positions."""
    return values[:, torch.from_numpy(positions).to(values.device)]


class Layout(NamedTuple):
    """Which positions of a grid have Gaussians, and where they lie.

    Attributes:
        shown: (P,) positions, counted row by row, cell by cell.
        placed: (h w,) which of these stands for each position of the grid.
        present: (h, w), True for those that are among them.
    """

    shown: NDArray[np.int64]
    placed: NDArray[np.int64]
    present: NDArray[np.bool_]


def _layout(height: int, width: int, share: int, area: NDArray[np.bool_] | None) -> Layout:
    cells = _cells(height, width, share)
    if area is not None:
        cells = cells[touched(area, (height, width)).ravel()[cells].any(axis=1)]
    shown = cells.ravel()
    # Of a position that is there more than once, the first.
    positions, first = np.unique(shown, return_index=True)
    index = np.zeros(height * width, dtype=np.int64)
    index[positions] = first
    present = np.zeros((height, width), dtype=bool)
    present.ravel()[positions] = True
    rows, columns = ndimage.distance_transform_edt(~present, return_distances=False, return_indices=True)
    return Layout(shown, index[(rows * width + columns).ravel()], present)


class Move(NamedTuple):
    """By which neighbour each of P positions is measured, all of them the same one.

    Attributes:
        shown: (P,) the position whose embedding each Gaussian measures.
        judged: (P,) the Gaussian that measures each position's embedding.
        outside: (P,) more than any distance where that would lie outside the grid, else 0.
    """

    shown: NDArray[np.int64]
    judged: NDArray[np.int64]
    outside: NDArray[np.float32]


@cache
def _moves(height: int, width: int, tolerance: int) -> list[Move]:
    """Return every move by up to ``tolerance`` positions a side."""
    rows, columns = np.divmod(np.arange(height * width), width)

    def moved(down: int, right: int) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Return where positions come to, held within the grid, and which of them had to be held."""
        row, column = (rows + down).clip(0, height - 1), (columns + right).clip(0, width - 1)
        return row * width + column, (row != rows + down) | (column != columns + right)

    moves = []
    for down, right in product(range(-tolerance, tolerance + 1), repeat=2):
        judged, held = moved(down, right)
        moves.append(Move(moved(-down, -right)[0], judged, np.float32(1e6) * held))
    return moves


@cache
def _cells(height: int, width: int, share: int) -> NDArray[np.int64]:
    """Return the positions (C, k), counted row by row, of the cells of ``share`` x ``share`` positions.

    Where the last cells reach over the border they hold the border's positions more than once; such a cell's covariance
    is that of the positions that it has.
    """
    rows, columns = (np.minimum(np.arange(-(-side // share) * share), side - 1) for side in (height, width))
    positions = rows[:, None] * width + columns
    cells = positions.reshape(len(rows) // share, share, len(columns) // share, share)
    return cells.swapaxes(1, 2).reshape(-1, share**2)
