"""Synthetic bottles: a small data set in MVTec AD's layout, for the demo and the tests, without a download.

A picture is drawn as the camera sees a bottle from above: everything is a function of the distance from the bottle's
axis (in half image sides, so 1 is the middle of a border) and of the angle around it. The generator of synthetic
anomalies then spoils a good bottle, so a mask is exact: outside it, the picture is the good bottle to the byte.

The pictures only look like MVTec AD: they say whether the code works, never how well a model does.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from padim_bottle.data.dataset import check_at_least
from padim_bottle.data.defects import AnomalySettings, add_anomaly
from padim_bottle.data.mvtec import MVTecAD
from padim_bottle.errors import UserError
from padim_bottle.files import whole_folder

Floats = NDArray[np.floating[Any]]
Picture = NDArray[np.uint8]
Mask = NDArray[np.bool_]

DEFECTS = {
    "broken_large": AnomalySettings(kinds=["missing"], size=[0.4, 0.7]),
    "broken_small": AnomalySettings(kinds=["scratch"], size=[0.1, 0.25], scratch_width=[0.015, 0.04]),
    "contamination": AnomalySettings(kinds=["patch"], size=[0.15, 0.4], strength=[0.7, 1.0]),
}
"""Each defect as an anomaly within the square that the bottle fills."""
_BOTTLE = (0.2, 0.8)

RENDERER_VERSION = 3
"""Raise it when the pixels change, so that a folder written by an older renderer is not used again."""

MIN_SIZE = 64

# Distance from the axis -> RGB. From the inside out: opening, its reddish edge, rough inner wall, mouth, shoulder with
# a pale ring, soft edge of the body, white background (saturated at any brightness).
_RINGS = {
    0.00: (42, 42, 52), 0.42: (33, 33, 45), 0.434: (62, 40, 46), 0.45: (50, 48, 55), 0.50: (42, 45, 54),
    0.58: (70, 75, 80), 0.69: (76, 71, 77), 0.75: (64, 65, 74), 0.785: (102, 97, 101), 0.805: (102, 97, 101),
    0.83: (60, 61, 70), 0.85: (58, 61, 71), 0.87: (95, 98, 102), 0.89: (190, 193, 188), 0.93: (280, 280, 280),
}  # fmt: skip
_MOUTH = 0.69  # where light shines through the glass and makes an orange ring
_AMBER = (110, 45, 8)


class SyntheticBottles(MVTecAD):
    """Bottles drawn by ``padim_bottle.data.synthetic``, written once and then read like MVTec AD.

    Args:
        root: folder to write them to.
        size: height and width of the images in pixels.
        train_good: number of good training images.
        test_good: number of good test images.
        test_per_defect: number of test images of each of the three kinds of defect.
        data_seed: decides what the bottles look like; the experiment's own seed does not.
        train_batch_size: images in a training batch.
        eval_batch_size: images in a test batch.
        num_workers: processes that read images; 0 reads in the main process, which is quickest for a few.
    """

    title = "synthetic bottles"
    synthetic = True

    def __init__(
        self,
        root: Path | str = "datasets/synthetic",
        size: int = 256,
        train_good: int = 40,
        test_good: int = 12,
        test_per_defect: int = 6,
        data_seed: int = 0,
        train_batch_size: int = 8,
        eval_batch_size: int = 8,
        num_workers: int | None = 0,
    ) -> None:
        counts = {"train_good": train_good, "test_good": test_good, "test_per_defect": test_per_defect}
        check_at_least(MIN_SIZE, size=size)
        check_at_least(0, data_seed=data_seed, **counts)
        # A folder of its own for each choice of parameters, so that none is taken for another.
        spelled = f"v{RENDERER_VERSION}-{size}px-{train_good}-{test_good}-{test_per_defect}-seed{data_seed}"
        super().__init__(
            root=Path(root) / spelled,
            category="bottle",
            train_batch_size=train_batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            verify=False,
            download=False,
        )
        self.parameters = {"size": size, "seed": data_seed, **counts}

    def prepare_data(self) -> None:
        """Draw the bottles if they are not there yet."""
        write_bottles(self.root, self.category, **self.parameters)
        super().prepare_data()


def write_bottles(
    root: Path,
    category: str = "bottle",
    *,
    size: int = 256,
    train_good: int = 24,
    test_good: int = 8,
    test_per_defect: int = 4,
    seed: int = 0,
) -> Path:
    """Write a synthetic data set to ``<root>/<category>`` in MVTec AD's layout, whole or not at all.

    One that was written earlier with the same parameters is used again. Each picture depends on the seed, its folder
    and its number alone, so a larger data set holds the smaller one.

    Args:
        root: folder of the data set; made if missing.
        category: name of the category's folder.
        size: side of the square pictures in pixels.
        train_good: number of pictures in ``train/good``.
        test_good: number of pictures in ``test/good``.
        test_per_defect: number of pictures of each defect in ``DEFECTS``.
        seed: seed of the whole data set, not negative.

    Returns:
        The category's folder.

    Raises:
        UserError: that folder exists and is anything but this data set.
    """
    counts = {"train/good": train_good, "test/good": test_good}
    counts |= {f"test/{defect}": test_per_defect for defect in DEFECTS}
    description = "Synthetic bottles drawn by padim_bottle. This is NOT MVTec AD: figures computed from them say "
    description += "nothing about a model's quality.\n\n"
    parameters = {"renderer version": RENDERER_VERSION, "size": size, "seed": seed, **counts}
    description += "".join(f"{name}: {value}\n" for name, value in parameters.items())
    target = Path(root) / category
    if not target.exists():
        with whole_folder(target, keep=True) as folder:
            for folder_id, (name, count) in enumerate(counts.items()):
                for index in range(count):
                    rng = np.random.default_rng(np.random.SeedSequence([seed, folder_id, index]))
                    _write_picture(folder, name, index, rng, size)
            (folder / "SYNTHETIC.txt").write_text(description, encoding="utf-8")
    marker = target / "SYNTHETIC.txt"
    if not marker.is_file() or marker.read_text(encoding="utf-8") != description:
        raise UserError(
            f"{target} exists and is not the synthetic data set asked for (its SYNTHETIC.txt is missing or names other "
            "parameters). Choose another folder, or delete that one if nothing in it is needed."
        )
    return target


def _write_picture(folder: Path, name: str, index: int, rng: np.random.Generator, size: int) -> None:
    split, kind = name.split("/")
    image, mask = render_bottle(rng, size, None if kind == "good" else kind)
    files = {folder / split / kind / f"{index:03d}.png": image}
    if kind != "good":
        files[folder / "ground_truth" / kind / f"{index:03d}_mask.png"] = mask.astype(np.uint8) * 255
    for path, pixels in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, compress_level=1)


def render_bottle(rng: np.random.Generator, size: int, defect: str | None = None) -> tuple[Picture, Mask]:
    """Draw one bottle.

    Args:
        rng: source of everything that varies between pictures; equal states give equal pixels.
        size: side of the square picture in pixels, at least 64.
        defect: one of ``DEFECTS``, or None for a good bottle.

    Returns:
        The picture, uint8 ``(size, size, 3)`` RGB, and the mask, bool ``(size, size)``: the pixels that the defect
        covers, at least one of them, or none for a good bottle.

    Raises:
        ValueError: the size is too small or there is no such defect.
    """
    if size < MIN_SIZE:
        raise ValueError(f"size must be at least {MIN_SIZE} pixels, not {size}")
    if defect is not None and defect not in DEFECTS:
        raise ValueError(f"defect must be one of {', '.join(DEFECTS)} or None, not {defect!r}")
    radius, angle = _polar(size, rng.normal(0, 0.004, 2), rng.normal(1, 0.003))
    good = _draw_good(rng, radius, angle)
    if defect is None:
        return good, np.zeros((size, size), dtype=bool)
    image, mask = good.copy(), np.zeros((size, size), dtype=bool)
    bottle = (slice(*(round(share * size) for share in _BOTTLE)),) * 2
    settings = DEFECTS[defect]
    image[bottle], mask[bottle] = add_anomaly(good[bottle], settings.kinds[0], settings, int(rng.integers(2**31)))
    return image, mask


def _draw_good(rng: np.random.Generator, radius: Floats, angle: Floats) -> Picture:
    size = len(radius)
    wobbly = radius + 0.0025 * _wave(rng, angle, 4)
    image = np.stack([np.interp(wobbly, list(_RINGS), channel) for channel in zip(*_RINGS.values())], axis=-1)  # noqa: B905
    image *= rng.normal(1, 0.015)
    # The lamps stand still: their reflections differ in strength and a little in place.
    towards_lamp = np.cos(angle - rng.normal(1, 0.25))
    rough = 3.5 * _grain(rng, size, 0.006) * (1.3 + towards_lamp)
    image += (_band(radius - 0.5, 0.055) * (rng.uniform(5, 13) * towards_lamp + rough))[..., None]
    image += (_band(radius - 0.8, 0.03) * (1 + _wave(rng, angle, 3)) * rng.uniform(2, 6))[..., None]
    image += (_band(radius - 0.58, 0.02) * rng.uniform(4, 14) * _wave(rng, angle, 4))[..., None]
    for _ in range(3):  # threads of light within the orange ring
        off = radius - _MOUTH - rng.normal(0, 0.011) - 0.005 * _wave(rng, angle, 6)
        strength = np.clip(0.5 + 0.5 * _wave(rng, angle, 24), 0, 1.5)
        image += (_band(off, rng.uniform(0.006, 0.014)) * strength)[..., None] * _AMBER
    image += rng.normal(0, 1, image.shape)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def _polar(size: int, origin: np.ndarray, scale: float = 1.0) -> tuple[Floats, Floats]:
    """Distance from the origin (x, y) and angle around it, at every pixel's centre."""
    line = (np.arange(size) + 0.5) * 2 / size - 1
    x, y = (line - origin[0])[None, :], (line - origin[1])[:, None]
    return (np.hypot(x, y) / scale).astype(np.float32), np.arctan2(y, x).astype(np.float32)


def _band(off: Floats, width: float) -> Floats:
    """Gaussian bump of height 1 where ``off`` is 0."""
    return np.exp(-((off / width) ** 2))


def _wave(rng: np.random.Generator, angle: Floats, harmonics: int) -> Floats:
    """Smooth random function of the angle, periodic, of mean 0 and variance about 1."""
    order = np.arange(1, harmonics + 1)
    amplitude = rng.normal(0, harmonics**-0.5, harmonics)
    grid = np.linspace(-np.pi, np.pi, 721)
    values = np.sqrt(2) * amplitude @ np.cos(np.outer(order, grid) + rng.uniform(-np.pi, np.pi, (harmonics, 1)))
    return np.interp(angle, grid, values)


def _grain(rng: np.random.Generator, size: int, width: float) -> Floats:
    """Smooth noise of mean about 0 and variance 1; the width is in half image sides."""
    noise = gaussian_filter(rng.standard_normal((size, size), dtype=np.float32), width * size / 2)
    return noise / noise.std()
