"""One pass through the backbone for many seeds.

Seeds of one experiment differ only in the channels that are kept of the backbone's features. So the first run records
what the backbone makes of each batch, and the others take it from there: they read no image and run no network. The
numbers are the same to the last bit, because everything behind the backbone is computed as always.
"""

import contextlib
import copy
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from anomalib.data import AnomalibDataModule, ImageBatch
from torch.utils.data import DataLoader

from padim_bottle.errors import UserError
from padim_bottle.experiment.cli import ExperimentCLI
from padim_bottle.model.padim import Padim

Features = dict[str, torch.Tensor]


class FeatureCache:
    """The batches of one data module and the features that one backbone has for them, on disk.

    Everything is in memory-mapped files, which the system pages in and out, so memory does not grow with the number
    of images. The files take about 1.8 MB an image (ResNet-18 at 256 x 256) and vanish with the process, however it
    ends.

    Use it as a context manager: ``attach`` each experiment before it runs, ``complete`` after it went well.

    Args:
        folder: where to put the files; ``None`` for the system's folder of temporary files.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._parent = folder
        self._files = 0
        self._recorded_seed: int | None = None
        self._seed: int | None = None
        self._forget()

    def __enter__(self) -> "FeatureCache":
        if self._parent is not None:
            self._parent.mkdir(parents=True, exist_ok=True)
        self._folder = TemporaryDirectory(dir=self._parent, prefix="padim-features-", ignore_cleanup_errors=True)
        return self

    def __exit__(self, *exception: object) -> None:
        self._forget()
        self._folder.cleanup()

    def attach(self, experiment: ExperimentCLI) -> int | None:
        """Make a run record its features, or take those that were recorded.

        Args:
            experiment: not run yet; the same at each call but for its seed.

        Returns:
            The seed whose features are taken, or ``None``.
        """
        if not can_share(experiment):
            return None
        network, datamodule = experiment.model.model, experiment.datamodule
        if self._recorded_seed is None:
            self._forget()
            self._seed = experiment.model.seed
            self._record(network, datamodule)
        else:
            self._replay(network, datamodule)
        return self._recorded_seed

    def complete(self) -> None:
        """Say that the run went well: what it recorded, if anything, is whole."""
        if self._features:
            self._recorded_seed = self._seed

    def _forget(self) -> None:
        self._features: list[Features] = []
        self._train_batches: list[ImageBatch] = []
        self._test_batches: list[ImageBatch] = []

    def _record(self, network: torch.nn.Module, datamodule: AnomalibDataModule) -> None:
        forward = network.feature_extractor.forward

        def record(images: torch.Tensor) -> Features:
            features = forward(images)
            self._features.append(self._to_disk(features))
            return features

        def keep(batch: ImageBatch, _loader: int) -> ImageBatch:
            kept = copy.copy(batch)
            if network.training:
                # Its features are all that is needed, but for the guided filter.
                guided = network.guided is not None
                kept.image = (
                    self._to_disk({"image": batch.image})["image"]
                    if guided
                    else torch.zeros(1).expand(batch.image.shape)
                )
                self._train_batches.append(kept)
            else:
                tensors = {name: getattr(batch, name) for name in ("image", "gt_mask")}
                known = {name: tensor for name, tensor in tensors.items() if tensor is not None}
                for name, tensor in self._to_disk(known).items():
                    setattr(kept, name, tensor)
                self._test_batches.append(kept)
            return batch

        # Attributes of these two instances alone: their classes and the state dict stay as they are.
        network.feature_extractor.forward = record
        datamodule.on_before_batch_transfer = keep

    def _replay(self, network: torch.nn.Module, datamodule: AnomalibDataModule) -> None:
        remaining = iter(self._features)

        def replay(images: torch.Tensor) -> Features:
            features = next(remaining, {})
            if {len(feature) for feature in features.values()} != {len(images)}:
                raise RuntimeError("The recorded features are not those of these batches.")
            return {layer: feature.to(images.device) for layer, feature in features.items()}

        network.feature_extractor.forward = replay
        datamodule.train_dataloader = lambda: _load(self._train_batches)
        datamodule.test_dataloader = lambda: _load(self._test_batches)

    def _to_disk(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Write tensors, and return them as memory maps with the same strides.

        Raises:
            UserError: they cannot be written, most often because the disk is full.
        """
        self._files += 1
        path = Path(self._folder.name, f"{self._files}.pt")
        plain = {name: tensor.detach().as_subclass(torch.Tensor) for name, tensor in tensors.items()}
        try:
            torch.save(plain, path)
        except (OSError, RuntimeError) as error:  # torch's own writer reports a full disk as a RuntimeError
            path.unlink(missing_ok=True)
            raise UserError(
                f"Cannot keep the features in {self._folder.name}: is the disk full? Free some space, or choose "
                "another cache_folder."
            ) from error
        mapped = torch.load(path, mmap=True, map_location="cpu")
        # A mapped file stays readable without its name, and is gone with the process. Windows does not let go of it.
        with contextlib.suppress(OSError):
            path.unlink()
        return mapped


def can_share(experiment: ExperimentCLI) -> bool:
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


def _load(batches: list[ImageBatch]) -> DataLoader:
    # A copy, for a run changes the batches that it is given.
    return DataLoader(batches, batch_size=None, collate_fn=copy.copy)
