"""What is in a data module, read from its table of samples, in the same way for all of anomalib's data modules."""

import logging
import os
from collections import Counter
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import URLError

from anomalib.data import AnomalibDataModule, AnomalibDataset
from anomalib.data.errors import MisMatchError
from anomalib.data.utils import LabelName, Split, ValSplitMode
from anomalib.data.utils.synthetic import SyntheticAnomalyDataset
from pandas import DataFrame, Series

from padim_bottle.data.dataset import PhotoDataset, mask_paths
from padim_bottle.data.digest import file_digests, fingerprint_of
from padim_bottle.data.images import is_transparent, read_size, scale_of
from padim_bottle.data.layout import GOOD
from padim_bottle.errors import UnavailableError, UserError, first_few, in_a_line

logger = logging.getLogger(__name__)

# Data sets that are known by another name than that of anomalib's class.
_TITLES = {"MVTecAD": "MVTec AD", "MVTecAD2": "MVTec AD 2", "MVTecLOCO": "MVTec LOCO AD", "Visa": "VisA"}

# What says only that there is a defect: the folder then says which.
_NAMELESS = {"", "abnormal"}


@dataclass(frozen=True)
class DataDescription:
    """The data of a run: what they are called, and what is known of the test images.

    Attributes:
        name: the data set.
        category: what is on the photos.
        synthetic: the photos are drawn.
        train_images: number of training images.
        defect_types: defect type of each test image by its path; ``good`` without one.
        unmasked: defective test images without a mask.
        notes: what else a reader of the results must know of the data, a sentence each.
        fingerprint: names the content of all files, see :func:`padim_bottle.data.digest.fingerprint_of`.
    """

    name: str
    category: str
    synthetic: bool
    train_images: int
    defect_types: dict[str, str]
    unmasked: frozenset[str]
    notes: tuple[str, ...]
    fingerprint: str

    @property
    def left_out(self) -> list[str]:
        """What the test images do not suffice for, and ``notes``, a sentence each."""
        if not self.defect_types:
            return ["There are no test images, so there are no test metrics.", *self.notes]
        types = set(self.defect_types.values())
        sentences = list(self.notes)
        if GOOD not in types:
            sentences.append("There are no good test images, so metrics that need them are left out.")
        if types == {GOOD}:
            sentences.append("There are no defective test images, so metrics that need them are left out.")
        without = sorted({self.defect_types[path] for path in self.unmasked})
        if without:
            sentences.append(f"There are no masks of {', '.join(without)}: pixel metrics leave their images out.")
        return sentences

    def as_dict(self) -> dict[str, Any]:
        """Return what ``metrics.json`` records."""
        return {
            "name": self.name,
            "category": self.category,
            "synthetic": self.synthetic,
            "train_images": self.train_images,
            "test_images": len(self.defect_types),
            "fingerprint": self.fingerprint,
            "left_out": self.left_out,
        }


def prepare(datamodule: AnomalibDataModule) -> None:
    """Fetch, check and list the data of any of anomalib's data modules.

    Raises:
        UnavailableError: the data are not here and cannot be downloaded.
        UserError: they are not as the data module wants them.
    """
    try:
        datamodule.prepare_data()
        datamodule.setup()
    except (URLError, HTTPException, ConnectionError, TimeoutError) as error:
        name, root = type(datamodule).__name__, getattr(datamodule, "root", "the folder that data.init_args names")
        raise UnavailableError(
            f"The data of {name} are not in {root} and cannot be downloaded ({in_a_line(error)}). Copy them there, or "
            "set data.init_args.root to the folder that holds them."
        ) from error
    # What anomalib's data modules raise for files that are not there or do not belong together.
    except (FileNotFoundError, NotADirectoryError, ValueError, RuntimeError, MisMatchError) as error:
        raise UserError(f"data: {in_a_line(error)}.") from error


def describe(datamodule: AnomalibDataModule | None) -> DataDescription:
    """Describe the data of a run.

    Args:
        datamodule: set up. Its ``title`` and ``synthetic`` are taken where it has them.

    Raises:
        UserError: it cannot be told what the images are, or files cannot be read.
    """
    if datamodule is None:
        raise UserError("Results need a data module, which says what the images are: engine.train(datamodule=...).")
    name = datamodule.name or type(datamodule).__name__
    try:
        train, test = datamodule.train_data.samples, _test_data(datamodule).samples
    except (AttributeError, RuntimeError):
        raise UserError(
            f"{name} has no table of its samples (train_data.samples and test_data.samples), which results need: use "
            "one of anomalib's data modules of images, or padim_bottle.Photos."
        ) from None
    if not len(train):
        raise UserError(f"{name} has no training images.")
    unknown = test.loc[~test["label_index"].isin([LabelName.NORMAL, LabelName.ABNORMAL]), "image_path"]
    if len(unknown):
        raise UserError(
            f"{unknown.iloc[0]} and {len(unknown) - 1} more test images of {name} have no label, so nothing can be "
            "tested. Choose a test set with labels (for MVTecAD2 test_type: public)."
        )
    class_name = type(datamodule).__name__
    digests = file_digests(_files(datamodule))
    return DataDescription(
        name=getattr(datamodule, "title", _TITLES.get(class_name, class_name)),
        category=datamodule.category or name,
        synthetic=getattr(datamodule, "synthetic", False),
        train_images=len(train),
        defect_types=_defect_types(test),
        unmasked=frozenset(test.loc[(test["label_index"] == LabelName.ABNORMAL) & ~_has_mask(test), "image_path"]),
        notes=tuple(filter(None, (_set_aside(datamodule), _seen_in_training(train, test, digests)))),
        fingerprint=fingerprint_of(digests),
    )


def read_alike(datamodule: AnomalibDataModule | None) -> int:
    """Let any of anomalib's data modules read its photos and masks as ours do; call it once it is set up.

    Its table of samples, its splits and its augmentations stay. Photos are looked at the first time, and what is
    remarkable about them is said.

    Returns:
        How many bits of 16-bit photos are in use in the training photos, see :class:`PhotoDataset`.

    Raises:
        UserError: a photo cannot be read.
    """
    if datamodule is None:
        return PhotoDataset.bits
    for name, data in list(vars(datamodule).items()):
        if not isinstance(data, AnomalibDataset) or "depth_path" in data.samples:
            continue
        if not isinstance(data, PhotoDataset):
            data = PhotoDataset.over(data)
            setattr(datamodule, name, data)
        # anomalib 2.7.0 with pandas 3 has NaN for an image without a mask, which its items refuse.
        if "mask_path" in data.samples:
            masks = data.samples["mask_path"].astype(object)
            data.samples["mask_path"] = masks.where(masks.notna(), None)
    if not hasattr(datamodule, "val_data"):
        datamodule.val_data = PhotoDataset([], Split.VAL)  # asked for by Lightning's fast_dev_run
    bits = vars(datamodule).setdefault("photo_bits", None) or _look_at(datamodule)
    datamodule.photo_bits = bits
    for data in vars(datamodule).values():
        if isinstance(data, PhotoDataset):
            data.bits = bits
    return bits


def _look_at(datamodule: AnomalibDataModule) -> int:
    """Return the bits in use, and say what is remarkable about the photos."""
    train = list(datamodule.train_data.samples["image_path"])
    photos = [*train, *_test_data(datamodule).samples["image_path"]]
    sizes = Counter(map(read_size, photos))
    if len(sizes) > 1:
        common = ", ".join(f"{width} x {height}" for (width, height), _ in sizes.most_common(3))
        logger.warning(
            "The photos have %d different sizes (%s%s): each is resized to the model's image_size, so parts should "
            "fill the frame alike.", len(sizes), common, ", ..." * (len(sizes) > 3)
        )  # fmt: skip
    if transparent := sum(map(is_transparent, photos)):
        logger.warning("%d photos may have transparent parts, which are read as white.", transparent)
    bits = scale_of(train)
    if bits < PhotoDataset.bits:
        logger.warning(
            "The 16-bit photos use %d bits: %d is read as white, here and wherever the model is used.",
            bits,
            2**bits - 1,
        )
    return bits


def _set_aside(datamodule: AnomalibDataModule) -> str | None:
    """Say how many photos anomalib keeps for a validation alone."""
    mode = datamodule.val_split_mode
    if mode not in (ValSplitMode.FROM_TRAIN, ValSplitMode.FROM_TEST, ValSplitMode.SYNTHETIC):
        return None
    used = {*datamodule.train_data.samples["image_path"], *_test_data(datamodule).samples["image_path"]}
    aside = len({*datamodule.val_data.samples["image_path"]} - used)
    return (
        f"{aside} photos are set aside for validation (val_split_mode: {mode.value}): they are "
        "neither trained nor tested on. A calibrated model needs no validation: data.init_args.val_split_mode: none."
    )


def _seen_in_training(train: DataFrame, test: DataFrame, digests: dict[Path, str]) -> str | None:
    """Name the test photos that are byte for byte training photos."""
    trained = {digests[Path(path)]: path for path in train["image_path"]}
    seen = [(path, trained.get(digests[Path(path)])) for path in test["image_path"] if Path(path) in digests]
    named = [f"{path} (as {original})" for path, original in seen if original is not None]
    if not named:
        return None
    return f"{len(named)} test photos are copies of training photos, so the test flatters: {first_few(named)}."


def _test_data(datamodule: AnomalibDataModule) -> Any:
    """Return the data set that is tested on: of MVTecAD2 not always ``test_data``."""
    test_type = getattr(datamodule, "test_type", None)
    return getattr(datamodule, f"test_{getattr(test_type, 'value', '')}_data", datamodule.test_data)


def _defect_types(samples: DataFrame) -> dict[str, str]:
    """Return the defect type of each image: its label, or its folder where the label says only that it is defective."""
    labels = samples["label"] if "label" in samples else [""] * len(samples)
    labels = [str(getattr(label, "value", label)) for label in labels]
    paths, defective = list(samples["image_path"]), samples["label_index"] == LabelName.ABNORMAL
    folders = {path: Path(path).parent for path in samples.loc[defective, "image_path"]}
    common = Path(os.path.commonpath(folders.values())) if folders else Path()
    types = {}
    for path, label, is_defective in zip(paths, labels, defective, strict=True):
        if not is_defective:
            types[path] = GOOD
        elif label in _NAMELESS or label == GOOD:
            below = folders[path].relative_to(common).parts
            types[path] = below[0] if below else common.name
        else:
            types[path] = label
    return types


def _has_mask(samples: DataFrame) -> Any:
    listed = samples["mask_path"] if "mask_path" in samples else Series([None] * len(samples), samples.index)
    return listed.map(lambda masks: bool(mask_paths(masks))).astype(bool)


def _files(datamodule: AnomalibDataModule) -> list[Path]:
    files: set[Path] = set()
    for data in (datamodule.train_data, getattr(datamodule, "val_data", None), _test_data(datamodule)):
        # Synthetic anomalies are drawn anew by each run, into a temporary folder.
        if data is None or isinstance(data, SyntheticAnomalyDataset):
            continue
        files |= {Path(path) for path in data.samples["image_path"]}
        if "mask_path" in data.samples:
            files |= {Path(mask) for masks in data.samples["mask_path"] for mask in mask_paths(masks)}
    # A mask may be listed for images that have none (VisA's good ones).
    return [file for file in files if file.exists()]
