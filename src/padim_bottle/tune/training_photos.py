"""The training photos, and what one backbone makes of them: read once, kept on disk."""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

import numpy as np
import torch
from anomalib.models.components import TimmFeatureExtractor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms.v2 import Transform
from torchvision.tv_tensors import Image, Mask

from padim_bottle.data.dataset import default_num_workers
from padim_bottle.data.defects import AnomalySettings, add_anomaly
from padim_bottle.data.images import read_image
from padim_bottle.errors import UserError

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

    def __len__(self) -> int:
        return 2 * len(self.paths)

    def kind(self, number: int) -> str:
        """Return which kind of anomaly photo ``number``, counted from 0, gets."""
        return self.anomalies.kinds[number % len(self.anomalies.kinds)]

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Read one photo, and damage it if it is one of the second half."""
        number = index % len(self.paths)
        pixels = read_image(self.paths[number])
        mask = np.zeros(pixels.shape[:2], dtype=bool)
        if index >= len(self.paths):
            # Before it is resized: as a camera would see it.
            pixels, mask = add_anomaly(pixels, self.kind(number), self.anomalies, number)
        image = Image(torch.from_numpy(pixels).permute(2, 0, 1).float().div_(255))
        image, mask = self.transform(image, Mask(torch.from_numpy(mask)))
        return image.as_subclass(torch.Tensor).contiguous(), mask.as_subclass(torch.Tensor)


class FeatureStore:
    """Images, masks and features of all photos, in memory-mapped files that vanish at the end.

    They take 2.6 MB an image for ResNet-18's three layers at 256 x 256, and there are two images a photo.

    Args:
        folder: where the files go; ``None`` for the system's folder of temporary files.
    """

    def __init__(self, folder: Path | None = None) -> None:
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
        self._folder = TemporaryDirectory(dir=folder, prefix="padim-tuning-", ignore_cleanup_errors=True)
        self._arrays: dict[str, np.ndarray] = {}
        self.layers: list[str] = []

    def __enter__(self) -> "FeatureStore":
        return self

    def __exit__(self, *exception: object) -> None:
        self._arrays.clear()
        self._folder.cleanup()

    def record(
        self,
        photos: TrainingPhotos,
        network: TimmFeatureExtractor,
        device: torch.device,
        advance: Callable[[int], None],
    ) -> None:
        """Let all images pass through a backbone once.

        Args:
            photos: what to read.
            network: the backbone, with all layers that are wanted.
            device: where it computes.
            advance: told of how many images were done.

        Raises:
            UserError: the disk has no room for them.
        """
        self.layers = [str(layer) for layer in network.layers]
        self._arrays.clear()
        shapes: dict[str, tuple[int, ...]] = {}
        with contextlib.ExitStack() as files:
            opened: dict[str, BinaryIO] = {}
            for images, masks in DataLoader(photos, _BATCH, num_workers=default_num_workers()):
                with torch.inference_mode():
                    features = network(images.to(device).contiguous(memory_format=torch.channels_last))
                for name, value in {"image": images, "mask": masks, **features}.items():
                    if name not in opened:
                        opened[name] = files.enter_context(self._path(name).open("wb"))
                        shapes[name] = tuple(value.shape[1:])
                    self._write(opened[name], value)
                advance(len(images))
        for name, shape in shapes.items():
            dtype = np.bool_ if name == "mask" else np.float32
            self._arrays[name] = np.memmap(self._path(name), dtype, "r", shape=(len(photos), *shape))

    def masks(self, indices: np.ndarray) -> np.ndarray:
        """Return the masks (n, H, W) of images."""
        return self._arrays["mask"][indices]

    def batches(self, indices: np.ndarray) -> Iterator[tuple[np.ndarray, torch.Tensor, dict[str, torch.Tensor]]]:
        """Yield the indices of some images, their pixels (b, 3, H, W) and their features, by layer."""
        for chosen in np.array_split(indices, math.ceil(len(indices) / _BATCH)):
            features = {layer: torch.from_numpy(self._arrays[layer][chosen]) for layer in self.layers}
            yield chosen, torch.from_numpy(self._arrays["image"][chosen]), features

    def _path(self, name: str) -> Path:
        return Path(self._folder.name, f"{name}.bin")

    def _write(self, file: BinaryIO, value: torch.Tensor) -> None:
        try:
            file.write(value.cpu().contiguous().numpy().data)
            file.flush()
        except OSError as error:
            raise UserError(
                f"Cannot keep the features in {self._folder.name} ({error.strerror}): an image takes "
                f"{value[0].nbytes / 1e6:.1f} MB a layer. Free some space, or choose another cache_folder."
            ) from error
