"""Synthetic bottles, laid out as other data sets are."""

import json
import shutil
from pathlib import Path


def copy(source: Path, target: Path) -> None:
    """Copy a file or a folder; the folders above it are made."""
    target.parent.mkdir(parents=True, exist_ok=True)
    (shutil.copytree if source.is_dir() else shutil.copy)(source, target)


def lay_out_folder(bottle: Path, root: Path) -> None:
    """Lay out what configs/folder.yaml names: a folder a kind."""
    copy(bottle / "train" / "good", root / "good")
    copy(bottle / "test" / "good", root / "good_test")
    for defect, name in (("broken_large", "scratch"), ("contamination", "dent")):
        copy(bottle / "test" / defect, root / name)
        for mask in (bottle / "ground_truth" / defect).iterdir():
            copy(mask, root / "masks" / name / mask.name.replace("_mask", ""))


def lay_out_visa(bottle: Path, root: Path, category: str = "capsules") -> None:
    """Lay out VisA as it is once anomalib has split it: visa_pytorch/<category>, with all defects in 'bad'."""
    folder = root / "visa_pytorch" / category
    copy(bottle / "train" / "good", folder / "train" / "good")
    copy(bottle / "test" / "good", folder / "test" / "good")
    for image in sorted((bottle / "test").glob("*_*/*.png")):  # broken_large and broken_small
        name = f"{image.parent.name[7:]}_{image.stem}.png"
        copy(image, folder / "test" / "bad" / name)
        copy(bottle / "ground_truth" / image.parent.name / f"{image.stem}_mask.png", folder / "ground_truth/bad" / name)


def lay_out_mvtec_ad2(bottle: Path, root: Path, category: str = "sheet_metal") -> None:
    """Lay out MVTec AD 2: validation images, and a public and two private test sets."""
    folder = root / category
    copy(bottle / "train" / "good", folder / "train" / "good")
    copy(bottle / "test" / "good", folder / "validation" / "good")
    copy(bottle / "test" / "good", folder / "test_public" / "good")
    copy(bottle / "test" / "contamination", folder / "test_public" / "bad")
    copy(bottle / "ground_truth" / "contamination", folder / "test_public" / "ground_truth" / "bad")
    for private in ("test_private", "test_private_mixed"):
        copy(bottle / "test" / "contamination", folder / private)


def lay_out_btech(bottle: Path, root: Path, category: str = "01") -> None:
    """Lay out BTech: 'ok' and 'ko'."""
    copy(bottle / "train" / "good", root / category / "train" / "ok")
    copy(bottle / "test" / "good", root / category / "test" / "ok")
    copy(bottle / "test" / "contamination", root / category / "test" / "ko")
    for mask in (bottle / "ground_truth" / "contamination").iterdir():
        copy(mask, root / category / "ground_truth" / "ko" / mask.name.replace("_mask", ""))


def lay_out_realiad(bottle: Path, root: Path, category: str = "audiojack") -> None:
    """Lay out Real-IAD: what an image is stands in a JSON file, not in a table's label."""
    folder = root / "realiad_256" / category
    table = {"train": [], "test": []}
    for image in sorted((bottle / "train" / "good").iterdir()):
        copy(image, folder / "OK" / f"S{image.stem}" / f"{image.stem}.png")
        entry = {"image_path": f"OK/S{image.stem}/{image.stem}.png", "mask_path": None, "anomaly_class": "OK"}
        table["train"].append(entry)
    for defect, name in (("broken_large", "AK"), ("contamination", "ZW")):
        for image in sorted((bottle / "test" / defect).iterdir()):
            place = f"NG/{name}/S{image.stem}"
            copy(image, folder / place / f"{image.stem}.jpg")
            copy(bottle / "ground_truth" / defect / f"{image.stem}_mask.png", folder / place / f"{image.stem}.png")
            table["test"].append(
                {
                    "image_path": f"{place}/{image.stem}.jpg",
                    "mask_path": f"{place}/{image.stem}.png",
                    "anomaly_class": name,
                }
            )
    for image in sorted((bottle / "test" / "good").iterdir()):
        copy(image, folder / "OK" / f"T{image.stem}" / f"{image.stem}.png")
        entry = {"image_path": f"OK/T{image.stem}/{image.stem}.png", "mask_path": None, "anomaly_class": "OK"}
        table["test"].append(entry)
    listing = root / "realiad_jsons" / "realiad_jsons" / f"{category}.json"
    listing.parent.mkdir(parents=True)
    listing.write_text(json.dumps(table))
