"""Anyone's photos: a folder of good parts is enough."""

import logging
from collections import Counter
from pathlib import Path

from anomalib.data.utils import Split
from torchvision.transforms.v2 import Transform

from padim_bottle.data.dataset import OrderedLoading, PhotoDataset, check_at_least, default_num_workers
from padim_bottle.data.digest import file_digests, fingerprint_of
from padim_bottle.data.images import read_size
from padim_bottle.data.layout import IMAGE_SUFFIXES, LabelledImage, files_in, find_test_images, folders_in, images_in
from padim_bottle.errors import UserError, first_few

logger = logging.getLogger(__name__)

MINIMUM_PHOTOS = 3
"""Fewer cannot be left out in turn."""


class Photos(OrderedLoading):
    """A plain folder of photos of good parts, and optionally some photos to test on.

    Args:
        folder: Holds the photos of good parts.
        test: Holds a folder of photos a defect type, and ``good`` for good parts that were not trained on. Masks are
            optional and lie as in MVTec AD, beside it: ``ground_truth/<defect>/<name>_mask.png``. Null: no test.
        subfolders: Take the photos in the folders within ``folder`` too, such as one folder a part.
        train_batch_size: Photos in a training batch. PaDiM's result does not depend on it.
        eval_batch_size: Photos in a test batch.
        num_workers: Processes that read photos; 0 reads in the main process. Null: one a core, 8 at most.
        augmentations: Applied to all photos before the model's own resizing.

    Attributes:
        fingerprint: Names the content of all photos and masks after ``prepare_data``.
    """

    title = "photos"

    def __init__(
        self,
        folder: Path | str,
        test: Path | str | None = None,
        subfolders: bool = False,
        train_batch_size: int = 8,
        eval_batch_size: int = 8,
        num_workers: int | None = None,
        augmentations: Transform | None = None,
    ) -> None:
        check_at_least(1, train_batch_size=train_batch_size, eval_batch_size=eval_batch_size)
        check_at_least(0, num_workers=num_workers or 0)
        super().__init__(
            train_batch_size=train_batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=default_num_workers() if num_workers is None else num_workers,
            augmentations=augmentations,
        )
        self.folder = Path(folder).expanduser()
        self.test = None if test is None else Path(test).expanduser()
        self.subfolders = subfolders
        self.category = self.folder.resolve().name
        self.fingerprint: str | None = None

    def prepare_data(self) -> None:
        """Check the photos before any work is done, and set ``fingerprint``.

        Raises:
            UserError: There are too few, some are no photos or cannot be read, or some are to be trained and tested on.
        """
        if self.fingerprint is not None:
            return  # Lightning calls this before training and again before testing
        train, test = self._find()
        if len(train) < MINIMUM_PHOTOS:
            raise UserError(
                f"There {'is' if len(train) == 1 else 'are'} only {len(train)} photo{'s' * (len(train) != 1)} in "
                f"{self.folder}: at least {MINIMUM_PHOTOS} are needed, and 60 or more for a steady threshold."
            )
        trained = {image.path.resolve() for image in train}
        both = [str(image.path) for image in test if image.path.resolve() in trained]
        if both:
            raise UserError(
                f"Photos are to be trained and tested on: {first_few(both)}. Give --test photos that were not trained "
                "on, else the test says nothing."
            )
        folders = {self.folder, *(image.path.parent for image in train)}
        unused = [] if self.subfolders else [f"{path.name}/" for path in folders_in(self.folder)]
        unused += [path.name for folder in folders for path in sorted({*files_in(folder)} - {*images_in(folder)})]
        if unused:
            logger.warning("Not used of %s, for these are no photos: %s", self.folder, first_few(unused))
        sizes = Counter(read_size(image.path) for image in [*train, *test])
        if len(sizes) > 1:
            common = ", ".join(f"{width} x {height}" for (width, height), _ in sizes.most_common(3))
            logger.warning(
                "The photos have %d different sizes (%s%s): each is resized to the model's image_size, so parts should "
                "fill the frame alike.", len(sizes), common, ", ..." * (len(sizes) > 3)
            )  # fmt: skip
        trained_digests = file_digests([image.path for image in train], self.folder)
        digests = {f"photos/{name}": digest for name, digest in trained_digests.items()}
        if self.test is not None:
            tested_digests = file_digests([image.path for image in test], self.test)
            digests |= {f"test/{name}": digest for name, digest in tested_digests.items()}
            digests |= file_digests([image.mask for image in test if image.mask is not None], self.test.parent)
        self.fingerprint = fingerprint_of(digests)

    def _setup(self, _stage: str | None = None) -> None:
        train, test = self._find()
        self.train_data = PhotoDataset(train, Split.TRAIN)
        self.test_data = PhotoDataset(test, Split.TEST)

    def _find(self) -> tuple[list[LabelledImage], list[LabelledImage]]:
        if not self.folder.is_dir():
            raise UserError(f"There is no folder {self.folder}: give one that holds photos of good parts.")
        if self.test is not None and not self.test.is_dir():
            raise UserError(f"There is no folder {self.test}: give one that holds a folder of photos a defect type.")
        if self.test is not None and self.test.resolve() == self.folder.resolve():
            raise UserError(
                f"{self.folder} is given for training and for the test: give --test photos that were not trained on."
            )
        folders = [self.folder]
        within = folders_in(self.folder)
        if self.subfolders:
            for folder in folders:
                folders += folders_in(folder)  # and those in them in turn
        train = [LabelledImage(path) for folder in folders for path in images_in(folder)]
        if not train:
            hint = ""
            if within:
                hint = (
                    f" It holds folders ({', '.join(path.name for path in within[:5])}): give the one with the photos "
                    "of good parts, or set data.init_args.subfolders to true (--group parent-folder does) if all are."
                )
            raise UserError(f"There are no photos in {self.folder} ({', '.join(IMAGE_SUFFIXES)}).{hint}")
        if self.test is None:
            return train, []
        test = find_test_images(self.test, self.test.parent / "ground_truth")
        if not test:
            raise UserError(
                f"There are no photos in the folders of {self.test}: it needs a folder a defect type, and 'good' for "
                "photos of good parts."
            )
        return train, test
