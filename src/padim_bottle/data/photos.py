"""A data module for a plain folder of photos of good parts."""

import logging
from pathlib import Path

from anomalib.data.utils import Split
from torchvision.transforms.v2 import Transform

from padim_bottle.data.dataset import OrderedLoading, PhotoDataset, loading
from padim_bottle.data.digest import file_digests
from padim_bottle.data.layout import LabelledImage, find_test_images
from padim_bottle.data.listing import Listing, left_out, list_photos
from padim_bottle.errors import UserError, first_few
from padim_bottle.files import printable

logger = logging.getLogger(__name__)

MINIMUM_PHOTOS = 3
"""Fewer cannot be left out in turn."""


KNOWN_DEFECT = "known_defect"
"""Defect type of the photos that must still be rejected."""


class Photos(OrderedLoading):
    """Plain folders of photos of good parts, and optionally some photos to test on.

    Args:
        folder: holds the photos of good parts; or several that do, the first of which names the data. A photo that lies
            in two of them by way of links counts once.
        test: holds a folder of photos a defect type, and ``good`` for good parts that were not trained on. Masks are
            optional and lie as in MVTec AD, beside it: ``ground_truth/<defect>/<name>_mask.png``. Null: no test.
        subfolders: take the photos in the folders within ``folder`` too, such as one folder a part.
        train_batch_size: photos in a training batch. PaDiM's result does not depend on it.
        eval_batch_size: photos in a test batch.
        num_workers: processes that read photos; 0 reads in the main process. Null: one a core, 8 at most.
        augmentations: applied to all photos before the model's own resizing.
        keep_rejecting: holds photos of known defects, which are tested on as the defect type ``known_defect``: a run
            that lets one pass does not take the place of the one before.
    """

    title = "photos"

    def __init__(
        self,
        folder: Path | str | list[Path | str],
        test: Path | str | None = None,
        subfolders: bool = False,
        train_batch_size: int = 8,
        eval_batch_size: int = 8,
        num_workers: int | None = None,
        augmentations: Transform | None = None,
        keep_rejecting: Path | str | None = None,
    ) -> None:
        super().__init__(
            **loading(train_batch_size, eval_batch_size, num_workers),
            augmentations=augmentations,
        )
        self.folders = [Path(one).expanduser() for one in (folder if isinstance(folder, list) else [folder])]
        self.test = None if test is None else Path(test).expanduser()
        self.keep_rejecting = None if keep_rejecting is None else Path(keep_rejecting).expanduser()
        self.subfolders = subfolders
        self.category = self.folders[0].resolve().name if self.folders else ""
        self._prepared = False

    def prepare_data(self) -> None:
        """Check the photos before any work is done.

        Raises:
            UserError: there are too few, some are no photos or cannot be read, or some are to be trained and tested on.
        """
        if self._prepared:
            return  # Lightning calls this before training and again before testing
        train, test, unused = self._find()
        if len(train) < MINIMUM_PHOTOS:
            places = " and ".join(map(str, self.folders))
            raise UserError(
                f"There {'is' if len(train) == 1 else 'are'} only {len(train)} photo{'s' * (len(train) != 1)} in "
                f"{places}: at least {MINIMUM_PHOTOS} are needed, and 60 or more for a steady threshold."
            )
        resolved = {image.path.resolve() for image in train}
        both = [str(image.path) for image in test if image.path.resolve() in resolved]
        if both:
            raise UserError(
                f"Photos are to be trained and tested on: {first_few(both)}. Give --test photos that were not trained "
                "on, else the test says nothing."
            )
        for folder, paths in unused.items():
            if sentence := left_out(paths, folder):
                logger.warning(sentence)
        # What cannot be read is named now.
        digests = file_digests([image.path for image in [*train, *test]])
        trained = {digests[image.path]: image.path for image in train}
        both = [
            f"{image.path} (as {trained[digests[image.path]]})"
            for image in test
            if image.defect == KNOWN_DEFECT and digests[image.path] in trained
        ]
        if both:
            raise UserError(
                f"Known defects are among the good parts: {first_few(both)}. Take them out of either folder."
            )
        self._prepared = True

    @property
    def known_defects(self) -> frozenset[str]:
        """Paths of the known defects among the test photos."""
        samples = self.test_data.samples
        return frozenset(samples.loc[samples["label"] == KNOWN_DEFECT, "image_path"])

    def _setup(self, _stage: str | None = None) -> None:
        train, test, _ = self._find()
        self.train_data = PhotoDataset(train, Split.TRAIN)
        self.test_data = PhotoDataset(test, Split.TEST)

    def _find(self) -> tuple[list[LabelledImage], list[LabelledImage], dict[Path, list[Path]]]:
        """Return training and test photos, and by their folder the files that are not used."""
        if not self.folders:
            raise UserError("folder: name at least one that holds photos of good parts.")
        unused: dict[Path, list[Path]] = {}
        train: list[LabelledImage] = []
        for folder in self.folders:
            if sum(folder.resolve() == other.resolve() for other in self.folders) > 1:
                raise UserError(f"{folder} is given twice.")
            listing = self._list(folder)
            unused[folder] = listing.others + ([] if self.subfolders else listing.folders)
            earlier = {image.path.resolve() for image in train}
            train += [LabelledImage(path) for path in listing.photos if path.resolve() not in earlier]
        known = self._list_known()
        if self.test is not None and not self.test.is_dir():
            raise UserError(f"There is no folder {self.test}: give one that holds a folder of photos a defect type.")
        if self.test is None:
            return train, known, unused
        test, unused[self.test.parent] = find_test_images(self.test, self.test.parent / "ground_truth")
        if not test:
            raise UserError(
                f"There are no photos in the folders of {self.test}: it needs a folder a defect type, and 'good' for "
                "photos of good parts."
            )
        again = {image.path.resolve() for image in known}
        return train, [image for image in test if image.path.resolve() not in again] + known, unused

    def _list_known(self) -> list[LabelledImage]:
        if self.keep_rejecting is None:
            return []
        photos = list_photos(self.keep_rejecting).checked().photos
        if not photos:
            raise UserError(f"There are no photos in {self.keep_rejecting}: give a folder of photos of known defects.")
        return [LabelledImage(path, KNOWN_DEFECT) for path in photos]

    def _list(self, folder: Path) -> Listing:
        if not folder.is_dir():
            raise UserError(f"There is no folder {folder}: give one that holds photos of good parts.")
        if self.test is not None and self.test.resolve() == folder.resolve():
            raise UserError(
                f"{folder} is given for training and for the test: give --test photos that were not trained on."
            )
        listing = list_photos(folder, subfolders=self.subfolders).checked()
        if not listing.photos:
            hint = ""
            if listing.folders:
                hint = (
                    f" It holds folders ({', '.join(printable(path.name) for path in listing.folders[:5])}): give the "
                    "one with the photos of good parts, or set data.init_args.subfolders to true (--group "
                    "parent-folder does) if all are."
                )
            raise UserError(f"There are no photos in {folder}.{hint}")
        return listing
