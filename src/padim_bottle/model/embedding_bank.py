"""The training embeddings, kept for leave-one-out calibration."""

import tempfile
from typing import Any

import torch

from padim_bottle.errors import UserError


class EmbeddingBank:
    """Embeddings (N, P, d) that arrive batch by batch and are read again block of positions by block of positions.

    On the CPU they go to an unlinked temporary file (1.6 MB an image at P = 4096, d = 100), for memory is what is
    short there: 209 images would take 342 MB, 2,000 images 3.3 GB. On a GPU they stay on the GPU.
    """

    def __init__(self) -> None:
        self.count = 0
        self._shape = (0, 0)
        self._batches: list[torch.Tensor] = []
        self._file: Any = None  # a temporary file

    def append(self, embedding: torch.Tensor) -> None:
        """Add a batch (B, P, d), float32.

        Raises:
            UserError: the folder of temporary files is full.
        """
        self.count += len(embedding)
        self._shape = tuple(embedding.shape[1:])
        if embedding.device.type != "cpu":
            self._batches.append(embedding)
            return
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(prefix="padim-embeddings-")  # noqa: SIM115
            self._file.write(embedding.contiguous().numpy().data)
            self._file.flush()
        except OSError as error:
            raise UserError(
                f"Cannot keep the training embeddings in {tempfile.tempdir or 'a temporary file'} ({error.strerror}): "
                f"an image takes {embedding[0].nbytes / 1e6:.1f} MB. Free some, or set TMPDIR to a folder elsewhere."
            ) from error

    def block(self, positions: slice) -> torch.Tensor:
        """Return the embeddings (N, p, d) of a block of p consecutive positions."""
        if self._batches:
            return torch.cat([batch[:, positions] for batch in self._batches])
        total, features = self._shape
        start, stop, _ = positions.indices(total)
        block = torch.empty(self.count, stop - start, features)
        for image in range(self.count):
            self._file.seek(4 * features * (image * total + start))
            self._file.readinto(block[image].numpy().data)
        return block

    def images(self, indices: torch.Tensor) -> torch.Tensor:
        """Return all that is kept (n, P, d) of some images."""
        if self._batches:
            return torch.cat(self._batches)[indices]
        kept = torch.empty(len(indices), *self._shape)
        for row, image in zip(kept, indices.tolist(), strict=True):
            self._file.seek(row.nbytes * image)
            self._file.readinto(row.numpy().data)
        return kept

    def clear(self) -> None:
        """Forget the embeddings and free their memory or disk."""
        if self._file is not None:
            self._file.close()
        EmbeddingBank.__init__(self)
