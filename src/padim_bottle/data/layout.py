"""Is the data on disk the data that the published figures were computed on?"""

import hashlib
import logging
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from padim_bottle.errors import UserError

logger = logging.getLogger(__name__)

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
class CategoryFiles:
    """The files of one category, each list sorted by path.

    Attributes:
        folder: The category's folder.
        train: Training images, all good.
        test_good: Good test images.
        test_defective: Defective test images, in the folders named after their defects.
        masks: The mask of each defective image, in the order of ``test_defective``.
    """

    folder: Path
    train: list[Path]
    test_good: list[Path]
    test_defective: list[Path]
    masks: list[Path]

    @property
    def all(self) -> list[Path]:
        """Every image and mask."""
        return [*self.train, *self.test_good, *self.test_defective, *self.masks]


def find_files(root: str | Path, category: str) -> CategoryFiles:
    """List the images of a category in the MVTec AD layout and pair defective images with masks by name.

    A category is any folder with ``train/good``, ``test/good``, ``test/<defect>`` and
    ``ground_truth/<defect>``; the mask of ``000.png`` is ``000_mask.png`` or ``000.png``. Hidden files are
    passed over.

    Args:
        root: The folder that holds the categories.
        category: The category's folder in ``root``.

    Raises:
        UserError: If the folder is missing, holds no training image, or images and masks do not pair.
    """
    folder = Path(root) / category
    if not category or not folder.is_dir():
        raise UserError(_missing_category(Path(root), category))

    train = _images_in(folder / "train" / "good")
    if not train:
        raise UserError(
            f"There are no training images in {folder / 'train' / 'good'} ({', '.join(IMAGE_SUFFIXES)}). "
            f"Copy the category there again, or delete {folder} to have it downloaded."
        )
    extra = sorted(path.name for path in _folders_in(folder / "train") if path.name != "good")
    if extra:
        logger.warning("Training uses %s only; not used: %s", folder / "train" / "good", ", ".join(extra))

    test, ground_truth = folder / "test", folder / "ground_truth"
    test_good = _images_in(test / "good")
    test_defective, masks, unpaired = [], [], []
    for defect in sorted({path.name for path in (*_folders_in(test), *_folders_in(ground_truth))} - {"good"}):
        mask_of = {path.stem.removesuffix("_mask"): path for path in _images_in(ground_truth / defect)}
        for image in _images_in(test / defect):
            mask = mask_of.pop(image.stem, None)
            test_defective.append(image)
            masks.append(mask)
            if mask is None:
                unpaired.append(f"{image} has no mask {ground_truth / defect / image.stem}_mask.png")
        unpaired += [f"{mask} has no image {test / defect / stem}.*" for stem, mask in mask_of.items()]
    if unpaired:
        raise UserError(
            f"Images and masks of {folder} do not pair: {_first_few(unpaired)}. "
            "Copy what is missing there, or remove the other half of the pair."
        )
    return CategoryFiles(folder, train, test_good, test_defective, masks)


def verify_category(root: str | Path, category: str) -> str:
    """Check a category against what was published, and return its fingerprint.

    *bottle* is compared file by file with a list of SHA-256 sums, the other 14 categories of MVTec AD by
    their numbers of images. Any other name is a folder of the user's own: its layout alone is checked.

    Args:
        root: The folder that holds the categories.
        category: The category's folder in ``root``.

    Returns:
        As :func:`fingerprint`.

    Raises:
        UserError: If files are missing, differ or cannot be read, naming the first few of them.
    """
    found = find_files(root, category)
    if not found.test_good or not found.test_defective:
        absent = "good" if not found.test_good else "defective"
        logger.warning("No %s test images in %s: metrics that need them stay empty", absent, found.folder)
    digests = _digests(found)

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
        published = PUBLISHED_COUNTS[category]
        counted = ImageCounts(len(found.train), len(found.test_good), len(found.test_defective))
        if counted != published:
            problems.append(f"it has {counted}, published are {published}")
    if problems:
        raise UserError(
            f"{found.folder} is not MVTec AD's '{category}' as published: {_first_few(sorted(problems))}. "
            "Delete the folder to have it downloaded again; if the change is meant, set "
            "data.init_args.verify: false or give the folder a name of its own."
        )
    return _fingerprint(digests)


def fingerprint(root: str | Path, category: str) -> str:
    """Name the content of a category's images and masks.

    Returns:
        Hexadecimal SHA-256 of the lines ``<sha256>  <path relative to the category>``, sorted by path.

    Raises:
        UserError: If the layout is wrong or a file cannot be read.
    """
    return _fingerprint(_digests(find_files(root, category)))


def _fingerprint(digests: dict[str, str]) -> str:
    lines = "".join(f"{digests[name]}  {name}\n" for name in sorted(digests))
    return hashlib.sha256(lines.encode()).hexdigest()


def _digests(found: CategoryFiles) -> dict[str, str]:
    """SHA-256 of every file, by its path relative to the category, with forward slashes."""

    def digest(path: Path) -> str | OSError:
        try:
            return hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            return error

    # hashlib lets go of the interpreter lock, so threads are enough.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        digests = dict(zip(found.all, pool.map(digest, found.all), strict=True))
    errors = {path: error for path, error in digests.items() if isinstance(error, OSError)}
    if errors:
        named = _first_few([f"{path} ({error.strerror})" for path, error in errors.items()])
        raise UserError(f"Cannot read {named}. Check the permissions, or copy the files again.")
    return {path.relative_to(found.folder).as_posix(): value for path, value in digests.items()}


def _folders_in(folder: Path) -> list[Path]:
    return sorted(path for path in _entries(folder) if path.is_dir())


def _images_in(folder: Path) -> list[Path]:
    # A dangling link is listed too, so that it is reported and not passed over.
    images = (path for path in _entries(folder) if path.suffix.lower() in IMAGE_SUFFIXES)
    return sorted(path for path in images if not path.is_dir())


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
        there = [path.name for path in _folders_in(root)]
        message += f"; the folders there: {', '.join(there) or 'none'}"
    if (root / "train").is_dir():
        message += ". The root looks like a category itself: give the folder above it"
    return (
        f"{message}. The categories of MVTec AD: {', '.join(CATEGORIES)}; a folder of your own in the same "
        "layout works too. Set data.init_args.root or MVTEC_AD_ROOT to the folder that holds the category."
    )


def _first_few(problems: list[str], shown: int = 5) -> str:
    more = f" and {len(problems) - shown} more ({len(problems)} in all)" if len(problems) > shown else ""
    return "; ".join(problems[:shown]) + more
