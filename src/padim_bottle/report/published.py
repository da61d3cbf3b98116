"""Figures that others published for MVTec AD 'bottle', and means over its categories, to stand beside ours."""

from typing import NamedTuple


class PublishedRow(NamedTuple):
    """Figures of one source, named as ``metrics.json`` names ours; ``None`` where it gives none.

    source: method, and who published it.
    backbone: of the network.
    size: of the images as the network sees them, in pixels.
    protocol: how it was measured, where that is not as here: becomes a footnote, and equal ones share it.
    image_F1Score_anomalib: F1 at a threshold that has seen the test labels, as every published F1.
    """

    source: str
    backbone: str = ""
    size: str = ""
    protocol: str = ""
    image_AUROC: float | None = None  # noqa: N815
    pixel_AUROC: float | None = None  # noqa: N815
    pixel_AUPRO: float | None = None  # noqa: N815
    pixel_AUPIMO: float | None = None  # noqa: N815
    image_F1Score_anomalib: float | None = None  # noqa: N815


DEFECTIVE_ONLY = "its AUPRO averages over the defective images alone, ours over all: with all of them it is lower"
AT_THE_MASKS_SIZE = "measured by AUPIMO's authors, on maps enlarged to the masks' 900 x 900 pixels"

PUBLISHED = (
    PublishedRow(
        "Colab run this began from (T4)", "ResNet-18", "256",
        image_AUROC=0.9976, pixel_AUROC=0.9833, image_F1Score_anomalib=0.9764,
    ),
    PublishedRow(
        "anomalib's PaDiM page", "ResNet-18", "256",
        image_AUROC=0.994, pixel_AUROC=0.983, image_F1Score_anomalib=0.976,
    ),
    PublishedRow(
        "anomalib's PaDiM page", "Wide ResNet-50-2", "256",
        image_AUROC=0.999, pixel_AUROC=0.985, image_F1Score_anomalib=0.992,
    ),
    PublishedRow("PaDiM, Rd100 (Defard et al. 2021)", "ResNet-18", "224", pixel_AUROC=0.981),
    PublishedRow("PaDiM, Rd550 (Defard et al. 2021)", "Wide ResNet-50-2", "224", pixel_AUROC=0.983, pixel_AUPRO=0.948),
    PublishedRow(
        "PatchCore (Roth et al. 2022)", "Wide ResNet-50-2", "224", DEFECTIVE_ONLY,
        image_AUROC=1.000, pixel_AUROC=0.985, pixel_AUPRO=0.971,
    ),
    PublishedRow(
        "PaDiM (Bertoldo et al. 2024)", "ResNet-18", "", AT_THE_MASKS_SIZE,
        pixel_AUROC=0.9819, pixel_AUPRO=0.9473, pixel_AUPIMO=0.638,
    ),
    PublishedRow(
        "PaDiM (Bertoldo et al. 2024)", "Wide ResNet-50-2", "", AT_THE_MASKS_SIZE,
        pixel_AUROC=0.9831, pixel_AUPRO=0.9514, pixel_AUPIMO=0.830,
    ),
    PublishedRow(
        "PatchCore (Bertoldo et al. 2024)", "Wide ResNet-50-2", "", AT_THE_MASKS_SIZE,
        pixel_AUROC=0.9841, pixel_AUPRO=0.9393, pixel_AUPIMO=0.989,
    ),
    PublishedRow(
        "RD++ (Bertoldo et al. 2024)", "Wide ResNet-50-2", "", AT_THE_MASKS_SIZE,
        pixel_AUROC=0.9879, pixel_AUPRO=0.9648, pixel_AUPIMO=0.914,
    ),
    PublishedRow(
        "EfficientAD-S (Bertoldo et al. 2024)", "PDN", "", AT_THE_MASKS_SIZE,
        pixel_AUROC=0.9887, pixel_AUPRO=0.9464, pixel_AUPIMO=0.857,
    ),
    PublishedRow("EfficientAD-M (Batzner et al. 2024)", "PDN", "256", image_AUROC=1.000, pixel_AUPRO=0.957),
    PublishedRow(
        "Dinomaly in anomalib (Guo et al. 2025)", "DINOv2 ViT-B", "392",
        image_AUROC=1.000, pixel_AUROC=0.990, image_F1Score_anomalib=1.000,
    ),
)  # fmt: skip

PUBLISHED_MEANS = (
    PublishedRow("anomalib's PaDiM page", "ResNet-18", "256", image_AUROC=0.891, pixel_AUROC=0.968),
    PublishedRow(
        "PaDiM (Bertoldo et al. 2024)", "ResNet-18", pixel_AUROC=0.9662, pixel_AUPRO=0.9158, pixel_AUPIMO=0.258
    ),
)
"""Means over the 15 categories of MVTec AD."""
