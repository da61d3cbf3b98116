"""The training photos, and what one backbone makes of them: read once, kept on disk."""

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from lightning.fabric import Fabric
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import Transform
from torchvision.tv_tensors import Image, Mask

from padim_bottle.data.dataset import default_num_workers
from padim_bottle.data.defects import AnomalySettings, add_anomaly
from padim_bottle.data.images import read_image, scale_of
from padim_bottle.model.extractor import FrozenBackbone
from padim_bottle.model.network import Features
from padim_bottle.model.store import PhotoStore

_BATCH = 8


class TrainingPhotos(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """N good photos, then the same N with a synthetic anomaly each, as the network sees them.

    An item is the image (3, H, W), resized and normalised, and the mask (H, W), bool.

    Args:
        paths: of the N photos.
        anomalies: what the anomalies look like; photo i has the kind number i, over and over.
        transform: resizes and normalises.
    """

    def __init__(self, paths: Sequence[Path], anomalies: AnomalySettings, transform: Transform) -> None:
        self.paths = list(paths)
        self.anomalies = anomalies
        self.transform = transform
        self.bits = scale_of(paths)

    def __len__(self) -> int:
        return 2 * len(self.paths)

    def kind(self, number: int) -> str:
        """Return which kind of anomaly photo ``number``, counted from 0, gets."""
        return self.anomalies.kinds[number % len(self.anomalies.kinds)]

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Read one photo, and damage it if it is one of the second half."""
        number = index % len(self.paths)
        pixels = read_image(self.paths[number], self.bits)
        mask = np.zeros(pixels.shape[:2], dtype=bool)
        if index >= len(self.paths):
            # Before it is resized: as a camera would see it.
            pixels, mask = add_anomaly(pixels, self.kind(number), self.anomalies, number)
        image = Image(torch.from_numpy(pixels).permute(2, 0, 1).float().div_(255))
        image, mask = self.transform(image, Mask(torch.from_numpy(mask)))
        return image.as_subclass(torch.Tensor).contiguous(), mask.as_subclass(torch.Tensor)


class PhotoFeatures:
    """Images, masks and features of all photos, in files that vanish at the end.

    They take 2.6 MB an image for ResNet-18's three layers at 256 x 256, and there are two images a photo.

    Args:
        photos: what to read, once.
        network: the backbone, with all layers that are wanted.
        fabric: where and in what precision it computes.
        folder: where the files go.
        advance: told of how many images were done.

    Raises:
        UserError: the disk has no room for them.
    """

    def __init__(
        self,
        photos: TrainingPhotos,
        network: FrozenBackbone,
        fabric: Fabric,
        folder: Path,
        advance: Callable[[int], None],
    ) -> None:
        self._images, self._masks = PhotoStore(folder), PhotoStore(folder)
        self._features = {str(layer): PhotoStore(folder) for layer in network.layers}
        network.to(fabric.device)
        for images, masks in DataLoader(photos, _BATCH, num_workers=default_num_workers()):
            self._images.append(images)
            self._masks.append(masks)
            with fabric.autocast():
                features = network(images.to(fabric.device))
            for layer, feature in features.items():
                self._features[str(layer)].append(feature.float())
            advance(len(images))

    def masks(self, indices: np.ndarray) -> np.ndarray:
        """Return the masks (n, H, W) of images."""
        return self._masks.photos(indices).numpy()

    def batches(
        self, indices: np.ndarray, layers: Sequence[str], device: torch.device
    ) -> Iterator[tuple[np.ndarray, torch.Tensor, Features]]:
        """Yield the indices of some images, their pixels (b, 3, H, W) and their features of some layers."""
        for chosen in np.array_split(indices, math.ceil(len(indices) / _BATCH)):
            features = {layer: self._features[layer].photos(chosen).to(device) for layer in layers}
            yield chosen, self._images.photos(chosen).to(device), features
