"""One pass through the backbone for many seeds.

Seeds of one experiment differ only in the channels that are kept of the backbone's features. So the first run records
what the backbone makes of each batch, and the others take it from there: they read no image and run no network. The
numbers are the same to the last bit, because everything behind the backbone is computed as always.
"""

import contextlib
import copy
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from anomalib.data import AnomalibDataModule, ImageBatch
from torch.utils.data import DataLoader, Dataset

from padim_bottle.experiment.train import Experiment
from padim_bottle.model.network import Features, PadimModel
from padim_bottle.model.padim import Padim
from padim_bottle.model.store import PhotoStore


class FeatureCache:
    """The batches of one data module and the features that one backbone has for them, on disk.

    The files take about 1.8 MB an image (ResNet-18 at 256 x 256) and vanish with the process, however it ends.

    Args:
        folder: where to put the files; ``None`` for the system's folder of temporary files.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._recording: _Recording | None = None

    @contextlib.contextmanager
    def shared(self, experiment: Experiment) -> Iterator[int | None]:
        """Let a run within the context record its features, or take those that an earlier run recorded to its end.

        Args:
            experiment: not run yet; the same at each call but for its seed.

        Yields:
            The seed whose features are taken, or ``None``.
        """
        if not can_share(experiment):
            yield None
            return
        network, datamodule = experiment.model.model, experiment.datamodule
        if self._recording is None:
            recording = _Recording(self._folder, experiment.model.seed, network)
            with (
                network.features_from(recording.record),
                _replaced(datamodule, on_before_batch_transfer=lambda batch, _loader: recording.keep(batch)),
            ):
                yield None
            self._recording = recording
        else:
            recording = self._recording
            loaders = {
                "train_dataloader": lambda: recording.batches(training=True),
                "test_dataloader": lambda: recording.batches(training=False),
            }
            with network.features_from(recording.replay()), _replaced(datamodule, **loaders):
                yield recording.seed


class _Recording:
    """What one run of a seed saw, in files of a folder."""

    def __init__(self, folder: Path | None, seed: int, network: PadimModel) -> None:
        self.seed = seed
        self._network = network
        self._features: dict[str, PhotoStore] = defaultdict(lambda: PhotoStore(folder))
        self._sizes: list[int] = []
        self._train, self._test = _Batches(folder), _Batches(folder)

    def record(self, images: torch.Tensor) -> Features:
        """Return the network's features of a batch, and keep them."""
        features = self._network.feature_extractor(images)
        for layer, feature in features.items():
            self._features[layer].append(feature)
        self._sizes.append(len(images))
        return features

    def replay(self) -> Callable[[torch.Tensor], Features]:
        """Return a function that returns what was recorded, batch by batch."""
        sizes = iter(self._sizes)
        start = 0

        def features(images: torch.Tensor) -> Features:
            nonlocal start
            if next(sizes, None) != len(images):
                raise RuntimeError("The recorded features are not those of these batches.")
            rows = slice(start, start + len(images))
            start = rows.stop
            return {layer: store.photos(rows).to(images.device) for layer, store in self._features.items()}

        return features

    def keep(self, batch: ImageBatch) -> ImageBatch:
        """Keep a batch as the data module had it, and return it."""
        if self._network.training:
            # Only its features are needed, except with the guided filter.
            self._train.append(batch, [] if self._network.guided is None else ["image"])
        else:
            self._test.append(batch, ["image", "gt_mask"])
        return batch

    def batches(self, *, training: bool) -> DataLoader:
        """Return the batches of the training or of the test."""
        return DataLoader(self._train if training else self._test, batch_size=None, collate_fn=lambda batch: batch)


class _Batches(Dataset[ImageBatch]):
    """Batches whose large tensors are on disk."""

    def __init__(self, folder: Path | None) -> None:
        self._stores: dict[str, PhotoStore] = defaultdict(lambda: PhotoStore(folder))
        self._batches: list[tuple[ImageBatch, dict[str, slice]]] = []

    def __len__(self) -> int:
        return len(self._batches)

    def append(self, batch: ImageBatch, names: list[str]) -> None:
        """Add a batch; of those of its tensors that are not named only the images' size is kept."""
        kept, rows = copy.copy(batch), {}
        for name in names:
            if (tensor := getattr(batch, name)) is not None:
                start = len(self._stores[name])
                self._stores[name].append(tensor)
                rows[name] = slice(start, start + len(tensor))
        kept.image = torch.zeros(1).expand(batch.image.shape)
        if "gt_mask" in rows:
            kept.gt_mask = None
        self._batches.append((kept, rows))

    def __getitem__(self, index: int) -> ImageBatch:
        """Return a batch of its own: a run changes what it is given."""
        kept, rows = self._batches[index]
        batch = copy.copy(kept)
        for name, chosen in rows.items():
            setattr(batch, name, self._stores[name].photos(chosen))
        return batch


@contextlib.contextmanager
def _replaced(owner: AnomalibDataModule, **methods: Callable[..., Any]) -> Iterator[None]:
    """Give one instance other methods while the context lasts."""
    vars(owner).update(methods)
    try:
        yield
    finally:
        for name in methods:
            del vars(owner)[name]


def can_share(experiment: Experiment) -> bool:
    """Return whether seeds of an experiment see the same features, batch by batch, in one pass over all images."""
    model, data, trainer = experiment.model, experiment.datamodule, experiment.settings.trainer
    return (
        isinstance(model, Padim)
        and model.model.calibrating  # else there is a pass over validation images as well
        and isinstance(data, AnomalibDataModule)
        and data.train_augmentations is None
        and data.test_augmentations is None
        and trainer.limit_train_batches is None
        and trainer.limit_test_batches is None
        and not trainer.overfit_batches
        and not trainer.fast_dev_run
    )
