"""A tiny category in MVTec AD's layout."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(scope="session")
def write_category():
    """Write a category of noise images, return its folder; ``defects`` maps names to numbers of images."""

    def write(root: Path, category: str = "widget", *, train=3, good=2, defects=None, size=(40, 48), suffix=".png"):
        rng = np.random.default_rng(0)
        height, width = size
        folder = root / category

        def noise(path: Path):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)

        for index in range(train):
            noise(folder / "train" / "good" / f"{index:03}{suffix}")
        for index in range(good):
            noise(folder / "test" / "good" / f"{index:03}{suffix}")
        for defect, count in ({"crack": 2, "stain": 1} if defects is None else defects).items():
            for index in range(count):
                noise(folder / "test" / defect / f"{index:03}{suffix}")
                mask = np.zeros((height, width), np.uint8)
                mask[index : index + 9, 5:17] = 255
                path = folder / "ground_truth" / defect / f"{index:03}_mask.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask).save(path)
        return folder

    return write
