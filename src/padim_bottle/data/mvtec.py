"""anomalib's MVTec AD data module: fetched by the category, verified, read once at the model's size."""

import os
from pathlib import Path

import anomalib.data
import torch
from anomalib.data import ImageItem
from anomalib.data.datasets.base import AnomalibDataset
from anomalib.data.utils import LabelName, Split, TestSplitMode, ValSplitMode
from pandas import DataFrame
from torch.utils.data import DataLoader
from torchvision.transforms.v2 import Transform
from torchvision.tv_tensors import Image, Mask

from padim_bottle.data.download import download_category
from padim_bottle.data.images import read_image, read_mask
from padim_bottle.data.layout import CATEGORIES, find_files, fingerprint, verify_category
from padim_bottle.errors import UserError


class MVTecADDataset(anomalib.data.MVTecADDataset):
    """One split of a category, in the order of the paths.

    An item is what anomalib's dataset gives, read with :func:`padim_bottle.data.images.read_image` and with
    each mask paired to its image by name: ``image`` (3, H, W) float32 in [0, 1], ``gt_mask`` (H, W) uint8,
    ``gt_label`` 0 or 1, ``image_path`` and ``mask_path``. H and W are the model's, for the data module puts
    the model's Resize into ``augmentations``.

    Args:
        root: The folder that holds the categories.
        category: The category's folder in ``root``.
        augmentations: Applied to image and mask together, where they are read.
        split: ``train`` or ``test``.

    Raises:
        UserError: As :func:`padim_bottle.data.layout.find_files`, and for an image that cannot be read.
    """

    def __init__(
        self,
        root: Path | str,
        category: str = "bottle",
        augmentations: Transform | None = None,
        split: str | Split = Split.TRAIN,
    ) -> None:
        # Not MVTecADDataset.__init__, which knows only PNG and pairs masks by their place in the sorted list.
        AnomalibDataset.__init__(self, augmentations=augmentations)
        self.root_category = Path(root) / category
        self.category = category
        self.split = Split(split)
        found = find_files(root, category)
        if self.split is Split.TRAIN:
            pairs = [(image, None) for image in found.train]
        else:
            pairs = [(image, None) for image in found.test_good]
            pairs += zip(found.test_defective, found.masks, strict=True)
        samples = DataFrame(
            [
                (
                    str(found.folder),
                    self.split.value,
                    image.parent.name,
                    str(image),
                    int(LabelName.NORMAL if mask is None else LabelName.ABNORMAL),
                    None if mask is None else str(mask),
                )
                for image, mask in pairs
            ],
            columns=["path", "split", "label", "image_path", "label_index", "mask_path"],
            dtype=object,  # keeps None in mask_path, where pandas 3 would put NaN
        ).astype({"label_index": int})
        samples.attrs["task"] = "segmentation"
        self.samples = samples

    def __getitem__(self, index: int) -> ImageItem:
        """Read one image with its mask, all zero for a good image."""
        sample = self.samples.iloc[index]
        pixels = read_image(sample.image_path)
        # The view keeps colours innermost in memory, which Resize handles faster than a copy in planes.
        image = Image(torch.from_numpy(pixels).permute(2, 0, 1).float().div_(255))
        if sample.label_index == LabelName.NORMAL:
            mask = Mask(torch.zeros(pixels.shape[:2], dtype=torch.uint8))
        else:
            mask = Mask(torch.from_numpy(read_mask(sample.mask_path)))
            if mask.shape != image.shape[-2:]:
                raise UserError(
                    f"{sample.image_path} has {tuple(image.shape[-2:])} pixels, its mask {sample.mask_path} "
                    f"{tuple(mask.shape)}: a mask must have the size of its image."
                )
        if self.augmentations:
            image, mask = self.augmentations(image, mask)
        return ImageItem(
            image=image.contiguous(),
            gt_mask=mask,
            gt_label=torch.tensor(sample.label_index),
            image_path=sample.image_path,
            mask_path=sample.mask_path,
        )


class MVTecAD(anomalib.data.MVTecAD):
    """MVTec AD, or a folder of one's own in its layout.

    It is anomalib's data module of the same name (and so writes to the same run folders) with these
    differences: only the wanted category is downloaded; what lies on disk is verified; any ordinary kind of
    image is read; nothing is shuffled, for PaDiM's estimate does not depend on the order; and the test set is
    exactly what lies in ``test``, also when that holds no good or no defective images.

    Args:
        root: Folder that holds the categories. Null: the environment variable MVTEC_AD_ROOT, and without it
            ``datasets/MVTecAD``.
        category: One of the 15 categories, or the name of a folder of one's own.
        train_batch_size: Images in a training batch. PaDiM's result does not depend on it.
        eval_batch_size: Images in a validation or test batch.
        num_workers: Processes that read images; 0 reads in the main process. Null: one a core, 8 at most.
        train_augmentations: Applied to training images before the model's own resizing.
        val_augmentations: Applied to validation images.
        test_augmentations: Applied to test images.
        augmentations: Applied wherever none of the three above is given.
        test_split_mode: Where test images come from; ``from_dir`` is the folder ``test``.
        test_split_ratio: Share of images for a ``synthetic`` test set.
        val_split_mode: Where validation images come from: ``none``, ``same_as_test``, ``from_train``,
            ``from_test`` or ``synthetic``.
        val_split_ratio: Share of images for a validation set taken ``from_train``, ``from_test`` or
            ``synthetic``.
        seed: Seed of the random splits. Independent of the seed of the experiment.
        verify: Compare the category with what was published. False for a copy that was changed on purpose.
        download: Download a missing category of MVTec AD.

    Attributes:
        fingerprint: Names the content of the data after ``prepare_data``, see
            :func:`padim_bottle.data.layout.fingerprint`.
    """

    def __init__(
        self,
        root: Path | str | None = None,
        category: str = "bottle",
        train_batch_size: int = 16,
        eval_batch_size: int = 16,
        num_workers: int | None = None,
        train_augmentations: Transform | None = None,
        val_augmentations: Transform | None = None,
        test_augmentations: Transform | None = None,
        augmentations: Transform | None = None,
        test_split_mode: TestSplitMode | str = TestSplitMode.FROM_DIR,
        test_split_ratio: float = 0.2,
        val_split_mode: ValSplitMode | str = ValSplitMode.SAME_AS_TEST,
        val_split_ratio: float = 0.5,
        seed: int | None = 0,
        verify: bool = True,
        download: bool = True,
    ) -> None:
        check_at_least(1, train_batch_size=train_batch_size, eval_batch_size=eval_batch_size)
        check_at_least(0, num_workers=num_workers or 0)
        super().__init__(
            root=Path(root or os.environ.get("MVTEC_AD_ROOT") or "datasets/MVTecAD").expanduser(),
            category=category,
            train_batch_size=train_batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=default_num_workers() if num_workers is None else num_workers,
            train_augmentations=train_augmentations,
            val_augmentations=val_augmentations,
            test_augmentations=test_augmentations,
            augmentations=augmentations,
            test_split_mode=test_split_mode,
            test_split_ratio=test_split_ratio,
            val_split_mode=val_split_mode,
            val_split_ratio=val_split_ratio,
            seed=seed,
        )
        self.verify = verify
        self.download = download
        self.fingerprint: str | None = None

    def prepare_data(self) -> None:
        """Download the category if it is missing, check it and set ``fingerprint``.

        Raises:
            UserError: If the category is missing and cannot be downloaded, or is not what was published.
        """
        if self.fingerprint is not None:
            return  # Lightning calls this before training and again before testing
        if self.download and self.category in CATEGORIES and not (self.root / self.category).exists():
            download_category(self.category, self.root)
        check = verify_category if self.verify else fingerprint
        self.fingerprint = check(self.root, self.category)

    def _setup(self, _stage: str | None = None) -> None:
        self.train_data = MVTecADDataset(self.root, self.category, split=Split.TRAIN)
        self.test_data = MVTecADDataset(self.root, self.category, split=Split.TEST)

    def _create_test_split(self) -> None:
        # anomalib would take training images where test/good is empty. ``from_dir`` is already set up.
        if self.test_split_mode is not TestSplitMode.FROM_DIR:
            super()._create_test_split()

    def train_dataloader(self) -> DataLoader:
        """Load the training images in the order of their paths."""
        return self._dataloader(self.train_data, self.train_batch_size)

    def val_dataloader(self) -> DataLoader | list:
        """Load the validation images; an empty list, which Lightning passes over, if there are none."""
        if self.val_split_mode is ValSplitMode.NONE:
            return []
        return self._dataloader(self.val_data, self.eval_batch_size)

    def test_dataloader(self) -> DataLoader:
        """Load the test images in the order of their paths."""
        return self._dataloader(self.test_data, self.eval_batch_size)

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


def check_at_least(least: int, **arguments: int) -> None:
    """Raise a UserError that names the first argument of a data module that is too small."""
    for name, value in arguments.items():
        if value < least:
            raise UserError(f"data.init_args.{name}: {value} is less than {least}.")


def default_num_workers() -> int:
    """One worker for each core that this process may use, 8 at most."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 8)


def _use_one_thread(_worker: int) -> None:
    # As many workers as cores, each with threads of its own, would only wait for each other.
    torch.set_num_threads(1)
