"""The whole of inference as one network, from a photo's pixels to its p-value: what predicts, and what is exported."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from anomalib.models.components.base.export_mixin import ExportMixin
from lightning import LightningModule
from torch import nn
from torchvision.transforms.v2 import Compose, InterpolationMode, Resize

from padim_bottle.deploy.antialiased_resize import AntialiasedResize
from padim_bottle.errors import UserError
from padim_bottle.model.gaussian import TriangularDistance
from padim_bottle.model.padim import Padim
from padim_bottle.model.post_processor import CalibratedPostProcessor


class PadimOutput(NamedTuple):
    """What the network says about B photos; the field names are the outputs of exported models.

    The first four are anomalib's. Scores and maps are normalised to [0, 1] with the threshold at 0.5.

    Attributes:
        pred_score: (B, 1) normalised image score.
        pred_label: (B, 1) bool, True for anomalous.
        anomaly_map: (B, 1, H, W) normalised pixel scores at the network's own resolution.
        pred_mask: (B, 1, H, W) bool, True on pixels called anomalous.
        raw_score: (B, 1) image score as ``predictions.csv`` has it.
        p_value: (B, 1), or None for a model that was not calibrated.
    """

    pred_score: torch.Tensor
    pred_label: torch.Tensor | None
    anomaly_map: torch.Tensor
    pred_mask: torch.Tensor | None
    raw_score: torch.Tensor
    p_value: torch.Tensor | None


class EndToEndPadim(ExportMixin, LightningModule):
    """A fitted Padim with its preprocessing, thresholds, normalisation and p-value, for inference alone.

    Differences from anomalib's own ``forward``, which its exporter would trace: photos are resized with antialiasing,
    as in training (anomalib switches it off for export, so that its exported models see other pixels than those it
    was fitted to), and there is a p-value.

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
        dtype = self.model.gaussian.storage_dtype if exporting else torch.float32
        self.model.gaussian = TriangularDistance(self.model.gaussian, dtype)
        self.eval()

    def forward(self, image: torch.Tensor) -> PadimOutput:
        """Predict photos (B, 3, height, width) of any size, RGB float32 in [0, 1]."""
        image = image if self.transform is None else self.transform(image)
        raw = self.model(image)
        done = raw if self.post_processor is None else self.post_processor(raw)
        p_value = self._p_value(raw.pred_score)
        return PadimOutput(done.pred_score, done.pred_label, done.anomaly_map, done.pred_mask, raw.pred_score, p_value)

    def _p_value(self, score: torch.Tensor) -> torch.Tensor | None:
        if not isinstance(self.post_processor, CalibratedPostProcessor):
            return None
        # ``calibration.p_value`` searches the sorted scores, which ONNX cannot: counting gives the same.
        scores = self.post_processor.calibration_scores
        return (1 + (scores >= score).sum(dim=-1, keepdim=True)) / (len(scores) + 1)


def _exportable(transform: Callable | None) -> nn.Module | None:
    """Return the same preprocessing with its antialiased resizing in plain operations."""
    if isinstance(transform, Compose):
        return nn.Sequential(*map(_exportable, transform.transforms))
    if not isinstance(transform, Resize) or transform.antialias is False:
        return transform
    if transform.interpolation != InterpolationMode.BILINEAR or len(transform.size) != 2:
        raise UserError(f"This model's {transform} cannot be exported: resize bilinearly to a height and a width.")
    return AntialiasedResize(tuple(transform.size))
