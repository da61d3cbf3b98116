"""The whole of inference as one network, from a photo's pixels to its verdict: what predicts, and what is exported."""

from collections.abc import Callable
from typing import Any

import torch
from anomalib.data import InferenceBatch
from anomalib.models.components.base.export_mixin import ExportMixin
from lightning import LightningModule
from torch import nn
from torchvision.transforms.v2 import Compose, InterpolationMode, Resize

from padim_bottle.errors import UserError
from padim_bottle.model.gaussian import TriangularDistance
from padim_bottle.model.padim import Padim
from padim_bottle.predict.antialiased_resize import AntialiasedResize


class EndToEndPadim(ExportMixin, LightningModule):
    """A fitted Padim with its preprocessing, thresholds and normalisation, for inference alone.

    Its outputs are anomalib's. The difference from anomalib's own ``forward``, which its exporter would trace: photos
    are resized with antialiasing, as in training (anomalib switches it off for export, so that its exported models
    see other pixels than those it was fitted to).

    The padim is taken over and changed: do not train it afterwards.

    Args:
        padim: fitted model.
        exporting: resize by operations that all formats have, and keep the precision factors in the type they are
            stored in, which exported files then have as well; else everything is as fast as torch can have it.

    Raises:
        UserError: exporting a preprocessing that the exported formats do not have.
    """

    def __init__(self, padim: Padim, *, exporting: bool = False) -> None:
        super().__init__()
        transform = padim.pre_processor.transform if padim.pre_processor else None
        self.transform = _exportable(transform) if exporting else transform
        self.model = padim.model
        self.post_processor = padim.post_processor
        for grid in self.model.grids:
            grid.gaussian = TriangularDistance(
                grid.gaussian, grid.gaussian.storage_dtype if exporting else torch.float32
            )
        self.eval()

    def forward(self, image: torch.Tensor) -> InferenceBatch:
        """Predict photos (B, 3, height, width) of any size, RGB float32 in [0, 1].

        Returns:
            ``pred_score`` (B, 1) and ``anomaly_map`` (B, 1, H, W), normalised to [0, 1] with the threshold at 0.5, and
            ``pred_label`` (B, 1) and ``pred_mask`` (B, 1, H, W), true for anomalous; maps at the network's resolution.
        """
        return self.judge(self.raw(image))

    def raw(self, image: torch.Tensor) -> InferenceBatch:
        """Predict photos, without thresholds: ``pred_score`` is as in ``predictions.csv``."""
        return self.model(image if self.transform is None else self.transform(image))

    def judge(self, raw: InferenceBatch) -> InferenceBatch:
        """Normalise and threshold what ``raw`` returned."""
        return raw if self.post_processor is None else self.post_processor(raw)


def _exportable(transform: Callable[..., Any] | None) -> nn.Module | None:
    """Return the same preprocessing with its antialiased resizing in plain operations."""
    if isinstance(transform, Compose):
        return nn.Sequential(*map(_exportable, transform.transforms))
    if not isinstance(transform, Resize) or transform.antialias is False:
        return transform
    if transform.interpolation != InterpolationMode.BILINEAR or len(transform.size) != 2:
        raise UserError(f"This model's {transform} cannot be exported: resize bilinearly to a height and a width.")
    return AntialiasedResize(tuple(transform.size))
