"""anomalib's MVTec AD data module: fetched by the category, verified, read once at the model's size."""

import logging
from pathlib import Path

import anomalib.data
from anomalib.data import AnomalibDataModule
from anomalib.data.utils import Split, TestSplitMode, ValSplitMode
from torchvision.transforms.v2 import Transform

from padim_bottle.data.dataset import OrderedLoading, PhotoDataset, loading
from padim_bottle.data.download import download_category
from padim_bottle.data.layout import CATEGORIES, find_files, verify_category
from padim_bottle.data.listing import left_out
from padim_bottle.places import data_root

logger = logging.getLogger(__name__)


class MVTecAD(OrderedLoading, anomalib.data.MVTecAD):
    """MVTec AD, or a folder of one's own in its layout.

    It is anomalib's data module of the same name (and so writes to the same run folders) with these
    differences: only the wanted category is downloaded; what lies on disk is verified; any ordinary kind of
    image is read; nothing is shuffled; masks may be missing for whole defect types; and the test set is exactly what
    lies in ``test``, also when that holds no good or no defective images, or is not there.

    Args:
        root: folder that holds the categories. Null: the environment variable MVTEC_AD_ROOT, and without it
            ``datasets/MVTecAD`` (:func:`padim_bottle.places.data_root`).
        category: one of the 15 categories, or the name of a folder of one's own.
        train_batch_size: images in a training batch. PaDiM's result does not depend on it.
        eval_batch_size: images in a validation or test batch.
        num_workers: processes that read images; 0 reads in the main process. Null: one a core, 8 at most.
        train_augmentations: applied to training images before the model's own resizing.
        val_augmentations: applied to validation images.
        test_augmentations: applied to test images.
        augmentations: applied wherever none of the three above is given.
        test_split_mode: where test images come from; ``from_dir`` is the folder ``test``.
        test_split_ratio: share of images for a ``synthetic`` test set.
        val_split_mode: where validation images come from: ``none``, ``same_as_test``, ``from_train``,
            ``from_test`` or ``synthetic``.
        val_split_ratio: share of images for a validation set taken ``from_train``, ``from_test`` or
            ``synthetic``.
        seed: seed of the random splits. Independent of the seed of the experiment.
        verify: compare the category with what was published. False for a copy that was changed on purpose.
        download: download a missing category of MVTec AD.
    """

    title = "MVTec AD"

    def __init__(
        self,
        root: Path | str | None = None,
        category: str = "bottle",
        train_batch_size: int = 8,
        eval_batch_size: int = 8,
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
        super().__init__(
            root=Path(root).expanduser() if root else data_root(),
            category=category,
            **loading(train_batch_size, eval_batch_size, num_workers),
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
        self._prepared = False

    def prepare_data(self) -> None:
        """Download the category if it is missing, and check it.

        Raises:
            UserError: if the category is missing and cannot be downloaded, or is not what was published.
        """
        if self._prepared:
            return  # Lightning calls this before training and again before testing
        if self.download and self.category in CATEGORIES and not (self.root / self.category).exists():
            download_category(self.category, self.root)
        if self.verify:
            verify_category(self.root, self.category)
        found = find_files(self.root, self.category)
        if unused := left_out(found.left_out, found.folder):
            logger.warning(unused)
        self._prepared = True

    def _setup(self, _stage: str | None = None) -> None:
        found = find_files(self.root, self.category)
        self.train_data = PhotoDataset(found.train, Split.TRAIN)
        self.test_data = PhotoDataset(found.test, Split.TEST)

    def _create_test_split(self) -> None:
        if self.test_split_mode is not TestSplitMode.FROM_DIR:
            AnomalibDataModule._create_test_split(self)
