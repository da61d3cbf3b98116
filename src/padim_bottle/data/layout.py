"""MVTec AD's layout: finding a category's images and masks, and checking them against what was published."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from padim_bottle.data.digest import file_digests, fingerprint_of
from padim_bottle.errors import UserError, first_few

logger = logging.getLogger(__name__)

GOOD = "good"
"""The folder of images without a defect."""
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class ImageCounts:
    """How many files a category has: training images, good and defective test images (a mask each)."""

    train: int
    test_good: int
    test_defective: int


# Bergmann, Batzner, Fauser, Sattlegger, Steger: The MVTec Anomaly Detection Dataset: A Comprehensive
# Real-World Dataset for Unsupervised Anomaly Detection. IJCV 129(4), 2021, table 2.
PUBLISHED_COUNTS = {
    "bottle": ImageCounts(209, 20, 63),
    "cable": ImageCounts(224, 58, 92),
    "capsule": ImageCounts(219, 23, 109),
    "carpet": ImageCounts(280, 28, 89),
    "grid": ImageCounts(264, 21, 57),
    "hazelnut": ImageCounts(391, 40, 70),
    "leather": ImageCounts(245, 32, 92),
    "metal_nut": ImageCounts(220, 22, 93),
    "pill": ImageCounts(267, 26, 141),
    "screw": ImageCounts(320, 41, 119),
    "tile": ImageCounts(230, 33, 84),
    "toothbrush": ImageCounts(60, 12, 30),
    "transistor": ImageCounts(213, 60, 40),
    "wood": ImageCounts(247, 19, 60),
    "zipper": ImageCounts(240, 32, 119),
}
CATEGORIES = tuple(PUBLISHED_COUNTS)


@dataclass(frozen=True)
class LabelledImage:
    """One image: its path, its defect type (``good`` without one) and its mask, None if there is none."""

    path: Path
    defect: str = GOOD
    mask: Path | None = None


@dataclass(frozen=True)
class CategoryFiles:
    """The images of one category.

    Attributes:
        folder: The category's folder.
        train: Training images, all good, sorted by path.
        test: Test images, the good ones first, then by defect type and path.
    """

    folder: Path
    train: list[LabelledImage]
    test: list[LabelledImage]

    @property
    def all(self) -> list[Path]:
        """Every image and mask."""
        images = [*self.train, *self.test]
        return [image.path for image in images] + [image.mask for image in images if image.mask is not None]


def find_files(root: str | Path, category: str) -> CategoryFiles:
    """List the images of a category in the MVTec AD layout and pair defective images with masks by name.

    A category is any folder with ``train/good`` and, where there is something to test on, ``test/good``,
    ``test/<defect>`` and ``ground_truth/<defect>``, see :func:`find_test_images`. Hidden files are passed over.

    Args:
        root: The folder that holds the categories.
        category: The category's folder in ``root``.

    Raises:
        UserError: The folder is missing, holds no training image, or images and masks do not pair.
    """
    folder = Path(root) / category
    if not category or not folder.is_dir():
        raise UserError(_missing_category(Path(root), category))
    train = images_in(folder / "train" / GOOD)
    if not train:
        raise UserError(
            f"There are no training images in {folder / 'train' / GOOD} ({', '.join(IMAGE_SUFFIXES)}). "
            f"Copy the category there again, or delete {folder} to have it downloaded."
        )
    extra = [path.name for path in folders_in(folder / "train") if path.name != GOOD]
    if extra:
        logger.warning("Training uses %s only; not used: %s", folder / "train" / GOOD, ", ".join(extra))
    test = find_test_images(folder / "test", folder / "ground_truth") if (folder / "test").is_dir() else []
    return CategoryFiles(folder, [LabelledImage(path) for path in train], test)


def find_test_images(test: Path, ground_truth: Path) -> list[LabelledImage]:
    """List test images by defect type, with their masks.

    Args:
        test: Holds a folder a defect type, and ``good`` for images without one.
        ground_truth: Holds a folder of masks a defect type; the mask of ``000.png`` is ``000_mask.png`` or ``000.png``.
            A type may do without masks, but not a single image of a type whose other images have them.

    Raises:
        UserError: An image has no mask though others of its type do, or a mask has no image.
    """
    images = [LabelledImage(path) for path in images_in(test / GOOD)]
    unpaired = []
    for defect in sorted({path.name for path in (*folders_in(test), *folders_in(ground_truth))} - {GOOD}):
        mask_of = {path.stem.removesuffix("_mask"): path for path in images_in(ground_truth / defect)}
        for path in images_in(test / defect):
            images.append(LabelledImage(path, defect, mask_of.get(path.stem)))
            if mask_of and path.stem not in mask_of:
                unpaired.append(f"{path} has no mask {ground_truth / defect / path.stem}_mask.png")
        paired = {image.path.stem for image in images if image.defect == defect}
        unpaired += [f"{mask_of[stem]} has no image {test / defect / stem}.*" for stem in mask_of if stem not in paired]
    if unpaired:
        raise UserError(
            f"Images and masks of {test.parent} do not pair: {first_few(unpaired)}. Copy what is missing there, or "
            "remove the other half of the pair. A defect type may also have no masks at all."
        )
    return images


def verify_category(root: str | Path, category: str) -> str:
    """Check a category against what was published, and return its fingerprint.

    *bottle* is compared file by file with a list of SHA-256 sums, the other 14 categories of MVTec AD by their numbers
    of images. Any other name is a folder of the user's own: its layout alone is checked.

    Args:
        root: The folder that holds the categories.
        category: The category's folder in ``root``.

    Returns:
        As :func:`fingerprint`.

    Raises:
        UserError: Files are missing, differ or cannot be read; it names the first few of them.
    """
    found = find_files(root, category)
    digests = file_digests(found.all, found.folder)
    problems = []
    manifest = files("padim_bottle.data") / "manifests" / f"{category}.sha256"
    if category in CATEGORIES and manifest.is_file():
        lines = manifest.read_text(encoding="utf-8").splitlines()
        published = {name: digest for digest, name in (line.split("  ") for line in lines)}
        problems += [f"{name} is missing" for name in published.keys() - digests.keys()]
        problems += [f"{name} is not part of it" for name in digests.keys() - published.keys()]
        common = published.keys() & digests.keys()
        problems += [f"{name} has another content" for name in common if published[name] != digests[name]]
    elif category in CATEGORIES:
        good = sum(image.defect == GOOD for image in found.test)
        counted = ImageCounts(len(found.train), good, len(found.test) - good)
        if counted != PUBLISHED_COUNTS[category]:
            problems.append(f"it has {counted}, published are {PUBLISHED_COUNTS[category]}")
        problems += [f"{image.path} has no mask" for image in found.test if image.defect != GOOD and not image.mask]
    if problems:
        raise UserError(
            f"{found.folder} is not MVTec AD's '{category}' as published: {first_few(sorted(problems))}. "
            "Delete the folder to have it downloaded again; if the change is meant, set "
            "data.init_args.verify: false or give the folder a name of its own."
        )
    return fingerprint_of(digests)


def fingerprint(root: str | Path, category: str) -> str:
    """Name the content of a category's images and masks.

    Returns:
        Hexadecimal SHA-256 of the lines ``<sha256>  <path relative to the category>``, sorted by path.

    Raises:
        UserError: The layout is wrong or a file cannot be read.
    """
    found = find_files(root, category)
    return fingerprint_of(file_digests(found.all, found.folder))


def folders_in(folder: Path) -> list[Path]:
    """Return the folders in a folder, sorted; none if it is missing."""
    return sorted(path for path in _entries(folder) if path.is_dir())


def images_in(folder: Path) -> list[Path]:
    """Return the images in a folder, sorted; none if it is missing."""
    # A dangling link is listed too, so that it is reported and not passed over.
    images = (path for path in _entries(folder) if path.suffix.lower() in IMAGE_SUFFIXES)
    return sorted(path for path in images if not path.is_dir())


def files_in(folder: Path) -> list[Path]:
    """Return everything in a folder that is no folder, sorted."""
    return sorted(path for path in _entries(folder) if not path.is_dir())


def _entries(folder: Path) -> Iterable[Path]:
    try:
        entries = [path for path in folder.iterdir() if not path.name.startswith(".")]
        for path in entries:
            str(path).encode()
        return entries
    except UnicodeEncodeError:
        raise UserError(f"The name of {str(path)!r} is not valid Unicode: rename it.") from None
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UserError(f"Cannot list {folder}: {error.strerror}. Check its permissions.") from None


def _missing_category(root: Path, category: str) -> str:
    message = f"There is no folder '{category}' in {root.absolute()}"
    if not root.is_dir():
        message += ", which does not exist either"
    else:
        there = [path.name for path in folders_in(root)]
        message += f"; the folders there: {', '.join(there) or 'none'}"
    if (root / "train").is_dir():
        message += ". The root looks like a category itself: give the folder above it"
    return (
        f"{message}. The categories of MVTec AD: {', '.join(CATEGORIES)}; a folder of your own in the same "
        "layout works too. Set data.init_args.root or MVTEC_AD_ROOT to the folder that holds the category."
    )
