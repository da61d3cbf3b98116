"""MVTec AD's layout: finding a category's images and masks, and checking them against what was published."""

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from padim_bottle.data.digest import file_digests, fingerprint_of
from padim_bottle.data.listing import list_photos
from padim_bottle.errors import UserError, first_few
from padim_bottle.files import printable

GOOD = "good"
"""The defect type of images without a defect."""
_GOOD_FOLDERS = {GOOD, "ok", "normal", "pass"}


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
        folder: the category's folder.
        train: training images, all good, sorted by path.
        test: test images, the good ones first, then by defect type and path.
        left_out: what else lies there.
    """

    folder: Path
    train: list[LabelledImage]
    test: list[LabelledImage]
    left_out: list[Path]

    @property
    def all(self) -> list[Path]:
        """Every image and mask."""
        images = [*self.train, *self.test]
        return [image.path for image in images] + [image.mask for image in images if image.mask is not None]


def find_files(root: str | Path, category: str) -> CategoryFiles:
    """List the images of a category in the MVTec AD layout and pair defective images with masks by name.

    A category is any folder with ``train/good`` and, where there is something to test on, ``test/good``,
    ``test/<defect>`` and ``ground_truth/<defect>``, see :func:`find_test_images`.

    Args:
        root: the folder that holds the categories.
        category: the category's folder in ``root``.

    Raises:
        UserError: the folder is missing, holds no training image, or images and masks do not pair.
    """
    folder = Path(root) / category
    if not category or not folder.is_dir():
        raise UserError(_missing_category(Path(root), category))
    beside = list_photos(folder / "train", subfolders=False).checked()
    good = list_photos(folder / "train" / GOOD, subfolders=False).checked()
    if not good.photos:
        raise UserError(
            f"There are no training images in {folder / 'train' / GOOD}. "
            f"Copy the category there again, or delete {folder} to have it downloaded."
        )
    left_out = [path for path in beside.folders if path.name != GOOD]
    left_out += [*beside.photos, *beside.others, *good.folders, *good.others]
    tested = (folder / "test").is_dir()
    test, unused = find_test_images(folder / "test", folder / "ground_truth") if tested else ([], [])
    return CategoryFiles(folder, [LabelledImage(path) for path in good.photos], test, left_out + unused)


def find_test_images(test: Path, ground_truth: Path) -> tuple[list[LabelledImage], list[Path]]:
    """List test images by defect type, with their masks.

    Args:
        test: holds a folder a defect type, and ``good`` (or ``OK``, ``normal``, ``pass``, in any case) for images
            without one. Folders within belong to it.
        ground_truth: holds a folder of masks a defect type; the mask of ``000.png`` is ``000_mask.png`` or ``000.png``.
            A type may do without masks, but not a single image of a type whose other images have them.

    Returns:
        The images, the good ones first, then by defect type and path; and what else lies there.

    Raises:
        UserError: an image has no mask though others of its type do, or a mask has no image.
    """
    tested, drawn = list_photos(test).checked(), list_photos(ground_truth).checked()
    left_out = [*tested.others, *drawn.others]
    masks: dict[str, dict[str, Path]] = {}
    for path in drawn.photos:
        defect, name = _type_and_name(path, ground_truth)
        if defect in ("", GOOD):
            left_out.append(path)
        else:
            masks.setdefault(defect, {})[name.removesuffix("_mask")] = path
    images, unpaired = [], []
    for path in tested.photos:
        defect, name = _type_and_name(path, test)
        if not defect:
            left_out.append(path)
        elif defect == GOOD:
            images.append(LabelledImage(path))
        else:
            images.append(LabelledImage(path, defect, masks.get(defect, {}).get(name)))
            if defect in masks and name not in masks[defect]:
                unpaired.append(f"{path} has no mask {ground_truth / defect / name}_mask.png")
    paired = {image.mask for image in images}
    unpaired += [
        f"{mask} has no image {test / defect / name}.*"
        for defect, of_name in masks.items()
        for name, mask in of_name.items()
        if mask not in paired
    ]
    if unpaired:
        raise UserError(
            f"Images and masks of {test.parent} do not pair: {first_few(sorted(unpaired))}. Copy what is missing "
            "there, or remove the other half of the pair. A defect type may also have no masks at all."
        )
    return sorted(images, key=lambda image: (image.defect != GOOD, image.defect, image.path)), left_out


def _type_and_name(path: Path, folder: Path) -> tuple[str, str]:
    """Return which type a photo below a folder is of ('' of one in the folder itself), and its name, without suffix."""
    first, *within = path.relative_to(folder).parts
    if not within:
        return "", first
    return GOOD if first.casefold() in _GOOD_FOLDERS else first, Path(*within).with_suffix("").as_posix()


def verify_category(root: str | Path, category: str) -> str:
    """Check a category against what was published, and return its fingerprint.

    *bottle* is compared file by file with a list of SHA-256 sums, the other 14 categories of MVTec AD by their numbers
    of images. Any other name is a folder of the user's own: its layout alone is checked.

    Args:
        root: the folder that holds the categories.
        category: the category's folder in ``root``.

    Returns:
        The name of its content, see :func:`padim_bottle.data.digest.fingerprint_of`.

    Raises:
        UserError: files are missing, differ or cannot be read; it names the first few of them.
    """
    found = find_files(root, category)
    digests = file_digests(found.all)
    named = {path.relative_to(found.folder).as_posix(): digest for path, digest in digests.items()}
    problems = []
    manifest = files("padim_bottle.data") / "manifests" / f"{category}.sha256"
    if category in CATEGORIES and manifest.is_file():
        lines = manifest.read_text(encoding="utf-8").splitlines()
        published = {name: digest for digest, name in (line.split("  ") for line in lines)}
        problems += [f"{name} is missing" for name in published.keys() - named.keys()]
        problems += [f"{name} is not part of it" for name in named.keys() - published.keys()]
        common = published.keys() & named.keys()
        problems += [f"{name} has another content" for name in common if published[name] != named[name]]
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


def _missing_category(root: Path, category: str) -> str:
    message = f"There is no folder '{category}' in {root.absolute()}"
    if not root.is_dir():
        message += ", which does not exist either"
    else:
        there = [printable(path.name) for path in list_photos(root, subfolders=False).folders]
        message += f"; the folders there: {', '.join(there) or 'none'}"
    if (root / "train").is_dir():
        message += ". The root looks like a category itself: give the folder above it"
    return (
        f"{message}. The categories of MVTec AD: {', '.join(CATEGORIES)}; a folder of your own in the same "
        "layout works too. Set data.init_args.root or MVTEC_AD_ROOT to the folder that holds the category."
    )
