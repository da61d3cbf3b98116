"""What a data module is about, read from its table of samples: the same for any of anomalib's data modules."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anomalib.data import AnomalibDataModule, AnomalibDataset
from anomalib.data.utils import LabelName
from anomalib.data.utils.synthetic import SyntheticAnomalyDataset
from pandas import DataFrame

from padim_bottle.data.digest import file_digests, fingerprint_of
from padim_bottle.data.layout import GOOD
from padim_bottle.errors import UserError

# Data sets that are known by another name than that of anomalib's class.
_TITLES = {"MVTecAD": "MVTec AD", "MVTecAD2": "MVTec AD 2", "MVTecLOCO": "MVTec LOCO AD", "Visa": "VisA"}

# What says only that there is a defect: the folder then says which.
_NAMELESS = {"", "abnormal"}


@dataclass(frozen=True)
class DataDescription:
    """What names the data of a run, and what is known of its test images.

    Attributes:
        name: The data set.
        category: What is on the photos.
        synthetic: The photos are drawn.
        train_images: Number of training images.
        defect_types: Defect type of each test image by its path; ``good`` without one.
        unmasked: Defective test images without a mask.
        fingerprint: Names the content of all files, see :func:`padim_bottle.data.digest.fingerprint_of`.
    """

    name: str
    category: str
    synthetic: bool
    train_images: int
    defect_types: dict[str, str]
    unmasked: frozenset[str]
    fingerprint: str

    @property
    def left_out(self) -> list[str]:
        """What the test images do not suffice for, a sentence each."""
        if not self.defect_types:
            return ["There are no test images, so there are no test metrics."]
        types = set(self.defect_types.values())
        sentences = []
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


def describe(datamodule: AnomalibDataModule | None) -> DataDescription:
    """Describe the data of a run.

    Args:
        datamodule: Set up. Its ``title`` and ``synthetic`` are taken where it has them.

    Raises:
        UserError: It cannot be told what the images are, or files cannot be read.
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
    return DataDescription(
        name=getattr(datamodule, "title", _TITLES.get(class_name, class_name)),
        category=datamodule.category or name,
        synthetic=getattr(datamodule, "synthetic", False),
        train_images=len(train),
        defect_types=_defect_types(test),
        unmasked=frozenset(test.loc[(test["label_index"] == LabelName.ABNORMAL) & ~_has_mask(test), "image_path"]),
        fingerprint=fingerprint_of(file_digests(_files(datamodule))),
    )


def restore_missing_masks(datamodule: AnomalibDataModule | None) -> None:
    """Put None where anomalib 2.7.0 with pandas 3 has NaN for an image without a mask, which its items refuse."""
    for data in vars(datamodule).values() if datamodule is not None else ():
        if isinstance(data, AnomalibDataset) and "mask_path" in data.samples:
            masks = data.samples["mask_path"].astype(object)
            data.samples["mask_path"] = masks.where(masks.notna(), None)


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
    if "mask_path" not in samples:
        return samples["image_path"].isna()
    return samples["mask_path"].map(lambda mask: bool(mask) and mask == mask)  # NaN is not equal to itself


def _files(datamodule: AnomalibDataModule) -> list[Path]:
    files: set[Path] = set()
    for data in (datamodule.train_data, getattr(datamodule, "val_data", None), _test_data(datamodule)):
        # Synthetic anomalies are drawn anew by each run, into a temporary folder.
        if data is None or isinstance(data, SyntheticAnomalyDataset):
            continue
        files |= {Path(path) for path in data.samples["image_path"]}
        for masks in data.samples.loc[_has_mask(data.samples), "mask_path"] if len(data.samples) else ():
            files |= {Path(mask) for mask in (masks if isinstance(masks, list) else [masks])}  # LOCO has several
    # A mask may be listed for images that have none (VisA's good ones).
    return [file for file in files if file.exists()]
