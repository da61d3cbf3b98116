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
from padim_bottle.model.padim import Padim

# Output pixels that share a window of the input: fewer waste copies, more waste multiplications.
GROUP = 32


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
        for grid in self.model.grids if exporting else ():
            grid.gaussian.hold_as(grid.gaussian.storage_dtype)
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


class AntialiasedResize(nn.Module):
    """Resizes images of any size to one size, as torchvision does with ``antialias=True``, to rounding (3e-6).

    Of plain operations that every exported format has. torchvision's own exports to ONNX's ``Resize``, but OpenVINO
    drops the antialiasing there, and anomalib's exporter switches it off beforehand. At 900 to 256 pixels that changes
    scores, masks and verdicts.

    An output pixel is a mean of the input with triangular weights, as wide as the input is larger; rows and columns
    are resized one after the other. A whole axis as one matrix would be nearly all zeros, so outputs are taken in
    groups, each with its own window of the input.

    Args:
        size: height and width to resize to.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.height, self.width = size

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Return (B, C, height, width) float32 for images (B, C, h, w) float32."""
        return _resize_rows(_resize_rows(image, self.height).mT, self.width).mT


def _resize_rows(image: torch.Tensor, target: int) -> torch.Tensor:
    source = image.shape[-2]
    group = max(divisor for divisor in range(1, GROUP + 1) if target % divisor == 0)
    # A tensor: the size is only known when an exported model runs. Places are whole numbers, in units of a pixel of
    # the input over 2 target: nothing is rounded.
    length = torch.scalar_tensor(source, dtype=torch.int64, device=image.device)
    reach = 2 * length.clamp_min(target)  # half the base of the triangle
    centres = ((2 * torch.arange(target, device=image.device) + 1) * length).view(1, 1, -1, group)  # (1, 1, G, group)
    window = source * (group + 2) // target + 4  # rows of the input that can count for a group
    first = (centres[..., :1] - reach - target).clamp_min(0) // (2 * target)
    rows = first + torch.arange(window, device=image.device)  # (1, 1, G, window)
    distance = ((2 * rows[..., None, :] + 1) * target - centres[..., None]).abs()  # (1, 1, G, group, window)
    weights = torch.where(rows[..., None, :] < length, (reach - distance).clamp_min(0), 0).float()
    # Weights over their sum. A division would lose its mark, see openvino_model.
    weights = weights.log().softmax(dim=-1)
    windows = image.index_select(-2, rows.clamp(max=length - 1).flatten()).unflatten(-2, rows.shape[-2:])
    return (weights @ windows).flatten(-3, -2)
