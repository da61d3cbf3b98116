"""Tensors of photos, kept on disk: embeddings for the calibration, features for the next seed or the next setting."""

import math
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from padim_bottle.errors import UserError


class PhotoStore:
    """Tensors of one shape, one a photo, that arrive batch by batch and come back as they went in.

    They go to a temporary file without a name, which vanishes with the process, however that ends. Main memory is what
    is short: an embedding takes 1.6 MB a photo at P = 4096, d = 100. Nothing stays on a GPU.

    Args:
        folder: where the file goes; ``None`` for the system's folder of temporary files.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._count = 0
        self._file: Any = None  # a temporary file
        self._shape: tuple[int, ...] = (0,)
        self._dtype = torch.float32
        self._channels_last = False

    def __len__(self) -> int:
        """Return the number of photos."""
        return self._count

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one photo's tensor, channels last where it came so."""
        return self._shape

    def append(self, batch: torch.Tensor) -> None:
        """Add the tensors of B photos (B, ...).

        Raises:
            UserError: the disk is full.
        """
        if not self._count:
            self._dtype = batch.dtype
            # The memory format is kept: what is computed from it is then equal to the last bit.
            self._channels_last = (
                batch.ndim == 4 and not batch.is_contiguous() and batch.is_contiguous(memory_format=torch.channels_last)
            )
        rows = batch.detach().as_subclass(torch.Tensor)
        rows = (rows.permute(0, 2, 3, 1) if self._channels_last else rows).cpu().contiguous()
        self._shape = tuple(rows.shape[1:])
        try:
            if self._file is None:
                if self._folder is not None:
                    self._folder.mkdir(parents=True, exist_ok=True)
                self._file = tempfile.TemporaryFile(prefix="padim-", dir=self._folder)  # noqa: SIM115
            self._file.seek(self._count * rows[0].nbytes)
            self._file.write(_bytes(rows))
            self._file.flush()
        except OSError as error:
            other = "set TMPDIR to a folder elsewhere" if self._folder is None else "choose another cache_folder"
            raise UserError(
                f"Cannot keep the features in {self._folder or tempfile.gettempdir()} ({error.strerror}): a photo "
                f"takes {rows[0].nbytes / 1e6:.1f} MB. Free some space, or {other}."
            ) from error
        self._count += len(rows)

    def photos(self, indices: Iterable[int] | slice) -> torch.Tensor:
        """Return the tensors (n, ...) of some photos."""
        chosen = range(self._count)[indices] if isinstance(indices, slice) else list(map(int, indices))
        rows = torch.empty(len(chosen), *self._shape, dtype=self._dtype)
        for row, photo in zip(rows, chosen, strict=True):
            self._read(photo * row.nbytes, row)
        return rows.permute(0, 3, 1, 2) if self._channels_last else rows

    def block(self, positions: slice) -> torch.Tensor:
        """Return p consecutive entries (N, p, ...) along the first dimension of all photos' tensors."""
        total, *rest = self._shape
        start, stop, _ = positions.indices(total)
        rows = torch.empty(self._count, stop - start, *rest, dtype=self._dtype)
        entry = rows.element_size() * math.prod(rest)
        for photo, row in enumerate(rows):
            self._read((photo * total + start) * entry, row)
        return rows

    def clear(self) -> None:
        """Forget everything and free the disk."""
        if self._file is not None:
            self._file.close()
        self._file = None
        self._count = 0

    def _read(self, start: int, row: torch.Tensor) -> None:
        self._file.seek(start)
        self._file.readinto(_bytes(row))


def _bytes(rows: torch.Tensor) -> memoryview:
    """Return the memory of a contiguous tensor of any type."""
    return rows.flatten().view(torch.uint8).numpy().data
