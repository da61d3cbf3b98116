"""Photos on disk as batches: anomalib's dataset, read once at the model's size and never shuffled."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from anomalib import TaskType
from anomalib.data import AnomalibDataModule, ImageItem
from anomalib.data.datasets.base import AnomalibDataset
from anomalib.data.utils import LabelName, Split, ValSplitMode
from pandas import DataFrame
from torch.utils.data import DataLoader
from torchvision.tv_tensors import Image, Mask

from padim_bottle.data.images import read_image, read_mask
from padim_bottle.data.joint_transform import transform_together
from padim_bottle.data.layout import GOOD, LabelledImage
from padim_bottle.errors import UserError
from padim_bottle.stages import cores

logger = logging.getLogger(__name__)


class PhotoDataset(AnomalibDataset):
    """Photos with defect types and masks, in the order of their paths.

    An item is what anomalib's datasets give, read with :func:`padim_bottle.data.images.read_image`: ``image``
    (3, H, W) float32 in [0, 1], ``gt_mask`` (H, W) uint8, ``gt_label`` 0 or 1, ``image_path`` and ``mask_path``. H and
    W are the model's: the data module puts the model's Resize into ``augmentations``. The mask of a good photo, and
    of a defective one whose mask is not known (``mask_path`` is None), is all zero.

    Args:
        images: what to read.
        split: ``train`` or ``test``.

    Attributes:
        bits: how many bits of 16-bit photos are in use, see :func:`padim_bottle.data.images.read_image`.
    """

    bits = 16

    def __init__(self, images: Iterable[LabelledImage], split: Split) -> None:
        super().__init__()
        rows = [
            (
                str(image.path),
                image.defect,
                int(LabelName.NORMAL if image.defect == GOOD else LabelName.ABNORMAL),
                None if image.mask is None else str(image.mask),
                split.value,
            )
            for image in images
        ]
        samples = DataFrame(
            rows,
            columns=["image_path", "label", "label_index", "mask_path", "split"],
            dtype=object,  # keeps None in mask_path, where pandas 3 would put NaN
        ).astype({"label_index": int})
        samples.attrs["task"] = "segmentation"
        self.samples = samples

    @classmethod
    def over(cls, data: AnomalibDataset) -> "PhotoDataset":
        """Return a data set of any class as one of this class: the same samples and augmentations, read by us."""
        dataset = cls.__new__(cls)
        AnomalibDataset.__init__(dataset, data.augmentations)
        dataset._samples, dataset._category = data.samples, data.category
        dataset._source = data  # synthetic anomalies lie in a folder that goes with it
        return dataset

    def __getitem__(self, index: int) -> ImageItem:
        """Read one photo with its mask.

        Raises:
            UserError: it cannot be read, or its mask has another size.
        """
        sample = self.samples.iloc[index]
        pixels = read_image(sample.image_path, self.bits)
        # The view keeps colours innermost in memory, which Resize handles faster than a copy in planes.
        image = Image(torch.from_numpy(pixels).permute(2, 0, 1).float().div_(255))
        marked = np.zeros(pixels.shape[:2], np.uint8)
        masks = mask_paths(sample.get("mask_path"))
        for path in masks if sample.label_index == LabelName.ABNORMAL else ():
            drawn = read_mask(path)
            if drawn.shape != marked.shape:
                raise UserError(
                    f"{sample.image_path} has {marked.shape} pixels, its mask {path} {drawn.shape}: a mask must have "
                    "the size of its image."
                )
            marked |= drawn
        if marked.mean() > 0.5:
            logger.warning("%s: its mask marks more than half of it, so it is probably inverted.", sample.image_path)
        mask = Mask(torch.from_numpy(marked))
        if self.augmentations:
            image, mask = transform_together(self.augmentations, image, mask)
        known = sample.label_index != LabelName.UNKNOWN
        return ImageItem(
            image=image.contiguous(),
            gt_mask=mask if known and self.task == TaskType.SEGMENTATION else None,
            gt_label=torch.tensor(int(sample.label_index)) if known else None,
            image_path=sample.image_path,
            mask_path=masks[0] if masks else None,
        )


def mask_paths(listed: Any) -> list[str]:
    """Return the masks of a photo: none, one, or several as in MVTec LOCO AD; what stands in a table of samples."""
    if isinstance(listed, (list, tuple)):
        return [str(path) for path in listed]
    return [str(listed)] if isinstance(listed, (str, Path)) and str(listed) else []


class OrderedLoading(AnomalibDataModule):
    """Loads photos in the order of their paths, on which PaDiM's estimate does not depend.

    A test or validation set without photos is an empty list, which Lightning passes over.
    """

    def _create_test_split(self) -> None:
        """Keep the test set as it lies on disk: anomalib would take training photos where it has no good ones."""

    def train_dataloader(self) -> DataLoader:
        """Load the training photos."""
        return self._dataloader(self.train_data, self.train_batch_size)

    def val_dataloader(self) -> DataLoader | list[Any]:
        """Load the validation photos."""
        if self.val_split_mode is ValSplitMode.NONE or not len(self.val_data):
            return []
        return self._dataloader(self.val_data, self.eval_batch_size)

    def test_dataloader(self) -> DataLoader | list[Any]:
        """Load the test photos."""
        return self._dataloader(self.test_data, self.eval_batch_size) if len(self.test_data) else []

    def _dataloader(self, dataset: AnomalibDataset, batch_size: int) -> DataLoader:
        return DataLoader(
            dataset,
            batch_size=batch_size,
            shuffle=False,
            num_workers=self.num_workers,
            collate_fn=self.external_collate_fn or dataset.collate_fn,
            worker_init_fn=_use_one_thread,
            # A generator of its own, or each pass over the data would draw from the global one.
            generator=torch.Generator().manual_seed(0),
        )


def loading(train_batch_size: int, eval_batch_size: int, num_workers: int | None) -> dict[str, int]:
    """Return a data module's arguments by their names, the workers as of ``default_num_workers`` if not given.

    Raises:
        UserError: one is too small.
    """
    batches = {"train_batch_size": train_batch_size, "eval_batch_size": eval_batch_size}
    workers = default_num_workers() if num_workers is None else num_workers
    check_at_least(1, **batches)
    check_at_least(0, num_workers=workers)
    return {**batches, "num_workers": workers}


def check_at_least(least: int, **arguments: int) -> None:
    """Raise a UserError that names the first argument of a data module that is too small."""
    for name, value in arguments.items():
        if value < least:
            raise UserError(f"data.init_args.{name}: {value} is less than {least}.")


def default_num_workers() -> int:
    """One worker for each core that this process may use, 8 at most."""
    return min(cores(), 8)


def _use_one_thread(_worker: int) -> None:
    # As many workers as cores, each with threads of its own, would only wait for each other.
    torch.set_num_threads(1)
