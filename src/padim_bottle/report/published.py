"""Figures that others published for MVTec AD 'bottle', to stand beside ours."""

from typing import NamedTuple


class PublishedRow(NamedTuple):
    """Figures of one source; ``None`` where it gives none."""

    source: str
    image_AUROC: float | None = None  # noqa: N815
    pixel_AUROC: float | None = None  # noqa: N815
    pixel_AUPRO: float | None = None  # noqa: N815
    image_F1: float | None = None  # noqa: N815


PUBLISHED = (
    PublishedRow("Colab run this began from (ResNet-18, T4)", 0.9976, 0.9833, None, 0.9764),
    PublishedRow("anomalib's PaDiM page, ResNet-18", 0.994, 0.983, None, 0.976),
    PublishedRow("anomalib's PaDiM page, Wide ResNet-50-2", 0.999, 0.985, None, 0.992),
    PublishedRow("PaDiM paper, R18-Rd100 (Defard et al. 2021)", None, 0.981),
    PublishedRow("PaDiM paper, WR50-Rd550 (Defard et al. 2021)", None, 0.983, 0.948),
    PublishedRow("PatchCore, WR50, 224 px (Roth et al. 2022)", 1.000, 0.985, 0.971),
    PublishedRow("EfficientAD-M (Batzner et al. 2024)", 1.000, None, 0.957),
    PublishedRow("Dinomaly in anomalib (Guo et al. 2025)", 1.000, 0.990, None, 1.000),
)
