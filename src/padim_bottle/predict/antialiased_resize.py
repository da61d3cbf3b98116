"""Bilinear resizing with antialiasing, of plain operations that every exported format has.

torchvision's ``Resize(antialias=True)`` exports to ONNX's ``Resize``, but OpenVINO drops the antialiasing there, and
anomalib's exporter switches it off beforehand. At 900 to 256 pixels that changes scores, masks and verdicts.
"""

import torch
from torch import nn

# Output pixels that share a window of the input: fewer waste copies, more waste multiplications.
GROUP = 32


class AntialiasedResize(nn.Module):
    """Resizes images of any size to one size, as torchvision does with ``antialias=True``, to rounding (3e-6).

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
    # A tensor, for the size is only known when an exported model runs. Places are whole numbers, in units of a pixel of
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
