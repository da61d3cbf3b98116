"""Synthetic bottles: a small data set in MVTec AD's layout, for tests and for a first run without a download.

A picture is drawn as the camera sees a bottle from above: everything is a function of the distance from
the bottle's axis (in half image sides, so 1 is the middle of a border) and of the angle around it. The good
bottle is drawn completely first and a defect is painted over it afterwards. So a defect's mask is exact:
outside it, the picture is, to the byte, the good bottle drawn from the same random generator.

The pictures only look like MVTec AD: they say whether the code works, never how well a model does.
"""

import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skimage.filters import gaussian

from padim_bottle.errors import UserError

Floats = NDArray[np.float32]
Picture = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Colour = tuple[float, float, float]

DEFECTS = ("broken_large", "broken_small", "contamination")

RENDERER_VERSION = 1
"""Raise it when the pixels change, so that a folder written by an older renderer is not used again."""

MIN_SIZE = 64

# Distance from the axis -> RGB. From the inside out: opening, its reddish edge, rough inner wall, mouth,
# shoulder with a pale ring, soft edge of the body, white background.
_RING_COLOURS: dict[float, Colour] = {
    0.00: (42, 42, 52),
    0.25: (36, 36, 47),
    0.42: (33, 33, 45),
    0.434: (62, 40, 46),
    0.45: (50, 48, 55),
    0.50: (42, 45, 54),
    0.54: (52, 56, 63),
    0.58: (70, 75, 80),
    0.64: (68, 68, 77),
    0.69: (76, 71, 77),
    0.75: (64, 65, 74),
    0.785: (102, 97, 101),
    0.805: (102, 97, 101),
    0.83: (60, 61, 70),
    0.85: (58, 61, 71),
    0.87: (95, 98, 102),
    0.89: (190, 193, 188),
    0.91: (246, 247, 243),
    0.93: (280, 280, 280),  # saturated, whatever the brightness
}
_OPENING = 0.425
_MOUTH = 0.69  # where light shines through the glass and makes an orange ring
_AMBER: Colour = (62, 25, 4)
_GLINT: Colour = (190, 170, 110)


def render_bottle(rng: np.random.Generator, size: int, defect: str | None = None) -> tuple[Picture, Mask]:
    """Draw one bottle.

    Args:
        rng: Source of everything that varies between pictures; equal states give equal pixels.
        size: Side of the square picture in pixels, at least 64.
        defect: One of ``DEFECTS``, or None for a good bottle.

    Returns:
        The picture, uint8 ``(size, size, 3)`` RGB, and the mask, bool ``(size, size)``: the pixels that the
        defect covers, at least one of them, or none for a good bottle.

    Raises:
        ValueError: if the size is too small or there is no such defect.
    """
    if size < MIN_SIZE:
        raise ValueError(f"size must be at least {MIN_SIZE} pixels, not {size}")
    if defect is not None and defect not in DEFECTS:
        raise ValueError(f"defect must be one of {', '.join(DEFECTS)} or None, not {defect!r}")

    axis = rng.normal(0, 0.004, 2)
    zoom = rng.normal(1, 0.003)
    radius, angle = _polar(size, axis, zoom)
    good = _draw_good(rng, radius, angle)
    if defect is None:
        return good, np.zeros((size, size), dtype=bool)

    severity = rng.uniform(0.15, 1.0)
    if defect == "contamination":
        kind = rng.choice([_film, _cloud, _smear, _flakes, _thread], p=[0.25, 0.15, 0.2, 0.2, 0.2])
        layer, mask = kind(rng, radius, angle, severity)
    else:
        layer, mask = _fracture(rng, radius, angle, severity, large=defect == "broken_large")
    return _paint_over(rng, good, layer, mask), mask


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
    """Write a synthetic data set to ``<root>/<category>`` in MVTec AD's layout.

    The folder appears whole or not at all. One that this function wrote earlier with the same parameters is
    used again. Each picture depends on the seed, its folder and its number alone, so a larger data set
    holds the smaller one, and the good pictures of train and test come from one distribution.

    Args:
        root: Folder of the data set; made if missing.
        category: Name of the category's folder.
        size: Side of the square pictures in pixels.
        train_good: Number of pictures in ``train/good``.
        test_good: Number of pictures in ``test/good``.
        test_per_defect: Number of pictures of each defect in ``DEFECTS``.
        seed: Seed of the whole data set, not negative.

    Returns:
        The category's folder.

    Raises:
        UserError: if that folder exists and is anything but this data set.
    """
    counts = {"train/good": train_good, "test/good": test_good}
    counts |= {f"test/{defect}": test_per_defect for defect in DEFECTS}
    description = _describe(size=size, seed=seed, **counts)
    target = Path(root) / category
    if target.exists():
        return _checked(target, description)

    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as unfinished:
        folder = Path(unfinished) / target.name
        for folder_id, (name, count) in enumerate(counts.items()):
            for index in range(count):
                rng = np.random.default_rng(np.random.SeedSequence([seed, folder_id, index]))
                _write_picture(folder, name, index, rng, size)
        (folder / "SYNTHETIC.txt").write_text(description, encoding="utf-8")
        try:
            folder.rename(target)
        except OSError:
            if not target.exists():
                raise
            return _checked(target, description)  # another process was faster
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


def _describe(**parameters: int) -> str:
    header = (
        "Synthetic bottles drawn by padim_bottle.data.synthetic. This is NOT MVTec AD: the pictures test\n"
        "the code, and figures computed from them say nothing about a model's quality.\n\n"
    )
    parameters = {"renderer version": RENDERER_VERSION, **parameters}
    return header + "".join(f"{name}: {value}\n" for name, value in parameters.items())


def _checked(target: Path, description: str) -> Path:
    marker = target / "SYNTHETIC.txt"
    if marker.is_file() and marker.read_text(encoding="utf-8") == description:
        return target
    raise UserError(
        f"{target} exists and is not the synthetic data set asked for (its SYNTHETIC.txt is missing or names "
        "other parameters). Choose another folder, or delete that one if nothing in it is needed."
    )


def _polar(size: int, origin: np.ndarray, scale: float = 1.0) -> tuple[Floats, Floats]:
    """Distance from the origin (x, y) and angle around it, at every pixel's centre."""
    line = ((np.arange(size, dtype=np.float32) + 0.5) * 2 / size - 1).astype(np.float32)
    x, y = (line - np.float32(origin[0]))[None, :], (line - np.float32(origin[1]))[:, None]
    return np.hypot(x, y) / np.float32(scale), np.arctan2(y, x)


def _draw_good(rng: np.random.Generator, radius: Floats, angle: Floats) -> Picture:
    size = len(radius)
    distances = np.array(list(_RING_COLOURS), dtype=np.float32)
    colours = np.array(list(_RING_COLOURS.values()), dtype=np.float32)
    wobbly = radius + 0.0025 * _wave(rng, angle, 4)
    image = np.stack([np.interp(wobbly, distances, channel) for channel in colours.T], axis=-1)
    image = image.astype(np.float32) * np.float32(rng.normal(1, 0.015))

    # The lamps stand still: their reflections differ in strength and a little in place.
    lamp = rng.normal(1.0, 0.25)
    towards_lamp = np.cos(angle - np.float32(lamp))
    wall = _band(radius, 0.50, 0.055)
    rough = _grain(rng, size, 0.006)
    image += (wall * (rng.uniform(5, 13) * towards_lamp + 3.5 * rough * (1.3 + towards_lamp)))[..., None]
    image += _tint(_band(radius, 0.80, 0.03) * (1 + _wave(rng, angle, 3)) * rng.uniform(2, 6), (1, 1, 1))
    image += _tint(_band(radius, 0.58, 0.02) * rng.uniform(4, 14) * _wave(rng, angle, 4), (0.8, 1, 1))
    spot = rng.normal(0, 0.06, 2)
    image += _tint(np.exp(-((_polar(size, spot)[0] / 0.11) ** 2)), (1, 1, 1)) * rng.uniform(0, 8)

    for _ in range(4):  # threads of light within the orange ring
        middle = _MOUTH + rng.normal(0, 0.011) + 0.005 * _wave(rng, angle, 6)
        strength = np.clip(0.65 + 0.6 * _wave(rng, angle, 24), 0, 2)
        image += _tint(_band(radius - middle, 0, rng.uniform(0.006, 0.014)) * strength, _AMBER)
    streaks = np.clip(_grain(rng, size, 0.006), 0, 3)
    for place in (-0.35, 2.6, rng.uniform(-np.pi, np.pi)):
        around = _turn(angle, rng.normal(place, 0.12))
        glint = _band(around, 0, rng.uniform(0.04, 0.16)) * _band(radius, rng.normal(_MOUTH, 0.02), 0.012)
        image += _tint(glint * streaks * rng.uniform(0.1, 1.1), _GLINT)
    for _ in range(rng.integers(3, 7)):  # fine arcs that wind along the neck
        around = _turn(angle, rng.uniform(-np.pi, np.pi))
        spiral = radius - rng.uniform(0.55, 0.66) - rng.normal(0, 0.05) * around
        arc = _band(spiral, 0, 0.005) * _band(around, 0, rng.uniform(0.15, 0.8)) * (radius > _OPENING)
        image += _tint(arc * rng.uniform(10, 55), (0.9, 1, 1))

    image += rng.normal(0, 1.0, image.shape).astype(np.float32)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def _fracture(
    rng: np.random.Generator, radius: Floats, angle: Floats, severity: float, *, large: bool
) -> tuple[Floats, Mask]:
    """Broken mouth: a jagged piece of ring made of dark facets, some of them bright if severe."""
    size = len(radius)
    if large:
        half_width, depth = 0.5 + 1.4 * severity, rng.uniform(0.24, 0.34)
    else:
        half_width, depth = 0.07 + 0.35 * severity, rng.uniform(0.10, 0.22)
    inner = rng.uniform(_OPENING, _OPENING + (0.02 if large else 0.10))
    around = _turn(angle, rng.uniform(-np.pi, np.pi))
    ends = np.abs(around) - 0.35 * half_width * _jagged(rng, radius * 4 - 2, 12)
    # Pieces taper towards their ends, as chips of glass do.
    outer = inner + depth * np.sqrt(np.clip(1 - (around / (1.4 * half_width)) ** 2, 0.1, 1))
    mask = (
        (ends < half_width)
        & (radius > inner + 0.02 * _jagged(rng, angle, 60))
        & (radius < outer + 0.04 * _jagged(rng, angle, 40))
    )
    mask |= (np.abs(around) < 0.05) & (np.abs(radius - inner - depth / 2) < 0.05)

    # Facets are the cells around scattered points, with the gradient of a tilted plane in each.
    candidates = np.argwhere(mask)
    number = int(np.clip(len(candidates) * 4000 / size**2 / 16, 5, 45))
    points = candidates[rng.integers(0, len(candidates), number)].astype(np.float32)
    offset = candidates[:, None, :].astype(np.float32) - points  # (pixels, facets, 2)
    stretch = rng.uniform(0.5, 2, (number, 2)).astype(np.float32)
    distance = (offset**2 * stretch).sum(-1)
    facet = distance.argmin(1)
    tilt = rng.normal(0, 60 / size, (number, 2)).astype(np.float32)
    own_offset = offset[np.arange(len(facet)), facet]
    shade = rng.uniform(-22, 28, number)[facet] + (own_offset * tilt[facet]).sum(-1)
    grey = np.zeros((size, size), dtype=np.float32)
    grey[mask] = 50 + (0.5 + 0.5 * severity) * shade
    layer = gaussian(grey, 0.002 * size)[..., None] + np.array([-1, -2, 5], dtype=np.float32)
    layer += _tint(np.clip(_grain(rng, size, 0.004) - 1.2, 0, 2), (25, 25, 25))

    bright = np.zeros((size, size), dtype=np.float32)
    bright[mask] = np.isin(facet, np.flatnonzero(rng.random(number) < (0.15 if large else 0.45) * severity))
    sparkle = np.clip(0.35 + 0.35 * _grain(rng, size, 0.02) + 0.2 * _grain(rng, size, 0.006), 0, 1.2)
    return layer + _tint(gaussian(bright, 0.002 * size) * sparkle, (175, 165, 140)), mask


def _film(rng: np.random.Generator, radius: Floats, angle: Floats, severity: float) -> tuple[Floats, Mask]:
    """Torn piece of a grey film deep inside the opening."""
    size = len(radius)
    towards = _turn(angle, rng.uniform(-np.pi, np.pi))
    edge = rng.uniform(0.0, 0.24) + 0.07 * _jagged(rng, 5 * radius * np.sin(towards), 25)
    mask = (radius < _OPENING) & (radius * np.cos(towards) > edge)
    veil = 10 + 30 * severity + (2 + 8 * severity) * (_grain(rng, size, 0.005) + _grain(rng, size, 0.06))
    return _tint(veil, (1, 1, 0.9)) + np.array([36, 36, 44], dtype=np.float32), mask


def _cloud(rng: np.random.Generator, radius: Floats, angle: Floats, severity: float) -> tuple[Floats, Mask]:
    """Brown liquid or paper that fills the opening."""
    size = len(radius)
    strength = 0.3 + 0.7 * severity
    light = strength * (0.75 + 0.15 * _grain(rng, size, 0.08) + 0.12 * np.clip(_grain(rng, size, 0.03), 0, 3))
    mask = radius < _OPENING - 0.02 + 0.006 * _wave(rng, angle, 6)
    return _tint(light, (115, 82, 45)) + np.array([33, 33, 42], dtype=np.float32), mask


def _smear(rng: np.random.Generator, radius: Floats, angle: Floats, severity: float) -> tuple[Floats, Mask]:
    """Curved dull smear on the neck."""
    size = len(radius)
    around = _turn(angle, rng.uniform(-np.pi, np.pi)) / (0.12 + 0.3 * severity)
    across = (radius - rng.uniform(0.52, 0.64)) / (0.03 + 0.04 * severity)
    mask = around**4 + across**2 < 1 + 0.3 * _wave(rng, angle, 30)
    mask |= (np.abs(around) < 0.2) & (np.abs(across) < 1)
    grey = rng.uniform(30, 45) + rng.choice([0, 45]) * severity + 4 * _grain(rng, size, 0.02)
    return _tint(grey, (0.95, 1, 1.1)), mask


def _flakes(rng: np.random.Generator, radius: Floats, angle: Floats, severity: float) -> tuple[Floats, Mask]:
    """One to four flakes, pale or rusty, anywhere on the bottle."""
    size = len(radius)
    layer, mask = np.zeros((size, size, 3), dtype=np.float32), np.zeros((size, size), dtype=bool)
    for _ in range(rng.integers(1, 5)):
        distance, direction = rng.uniform(0, 0.72), rng.uniform(-np.pi, np.pi)
        middle = distance * np.array([np.cos(direction), np.sin(direction)])
        from_middle, around = _polar(size, middle)
        extent = rng.uniform(0.05, 0.06 + 0.08 * severity)  # no flake falls between the pixels of MIN_SIZE
        flake = from_middle < extent * (0.8 + 0.35 * _jagged(rng, around, 9))
        colour: Colour = (150, 145, 130) if rng.random() < 0.5 else (125, 75, 50)
        light = (0.35 + 0.65 * severity) * (1 + 0.25 * _grain(rng, size, 0.015))
        layer[flake] = (np.array([38, 38, 46]) + _tint(light, colour))[flake]
        mask |= flake
    return layer, mask


def _thread(rng: np.random.Generator, radius: Floats, angle: Floats, severity: float) -> tuple[Floats, Mask]:
    """Reddish thread that hangs over the mouth; it may reach past the bottle."""
    size = len(radius)
    along = _turn(angle, rng.uniform(-np.pi, np.pi))
    forward, sideways = radius * np.cos(along), radius * np.sin(along)
    start = rng.uniform(-0.1, 0.25)
    progress = (forward - start) / (0.35 + 0.8 * severity)
    bend, phase = rng.uniform(0.03, 0.12), rng.uniform(-np.pi, np.pi)
    across = sideways - rng.normal(0, 0.08) - bend * np.sin(4 * progress + phase)
    half_width = (0.018 + 0.025 * severity) * (1 - 0.4 * progress) * (1 + 0.12 * np.sin(60 * progress))
    mask = (progress > 0) & (progress < 1) & (np.abs(across) < half_width)
    strand = 0.6 + 0.4 * np.cos(45 * progress + 60 * across) + 0.15 * _grain(rng, size, 0.006)
    return _tint(strand, (130, 62, 45)) + np.array([35, 28, 30], dtype=np.float32), mask


def _paint_over(rng: np.random.Generator, good: Picture, layer: Floats, mask: Mask) -> Picture:
    # Soft on the mask's inner side only: outside it nothing may change.
    opacity = gaussian(mask.astype(np.float32), 0.0025 * len(mask))[..., None]
    noisy = layer + rng.normal(0, 1.0, layer.shape).astype(np.float32)
    painted = np.clip(np.rint(good + opacity * (noisy - good)), 0, 255).astype(np.uint8)
    return np.where(mask[..., None], painted, good)


def _band(value: Floats, middle: float, width: float) -> Floats:
    """Gaussian bump of height 1."""
    return np.exp(-(((value - np.float32(middle)) / np.float32(width)) ** 2))


def _tint(light: Floats, colour: Colour) -> Floats:
    return light[..., None] * np.array(colour, dtype=np.float32)


def _turn(angle: Floats, origin: float) -> Floats:
    """Angle seen from another origin, in [-pi, pi)."""
    return (angle - np.float32(origin) + np.float32(np.pi)) % np.float32(2 * np.pi) - np.float32(np.pi)


def _wave(rng: np.random.Generator, angle: Floats, harmonics: int) -> Floats:
    """Smooth random function of the angle, periodic, of mean 0 and variance about 1."""
    grid = np.linspace(-np.pi, np.pi, 721)
    order = np.arange(1, harmonics + 1)
    amplitude = rng.normal(0, 1 / np.sqrt(harmonics), (2, harmonics))
    values = amplitude[0] @ np.cos(np.outer(order, grid)) + amplitude[1] @ np.sin(np.outer(order, grid))
    return np.interp(angle, grid, values).astype(np.float32)


def _jagged(rng: np.random.Generator, angle: Floats, teeth: int) -> Floats:
    """Random function of straight pieces in [-1, 1], periodic on [-pi, pi]: the edge of broken glass."""
    grid = np.sort(np.concatenate([[-np.pi, np.pi], rng.uniform(-np.pi, np.pi, teeth - 1)]))
    values = rng.uniform(-1, 1, teeth + 1)
    values[-1] = values[0]
    return np.interp(angle, grid, values).astype(np.float32)


def _grain(rng: np.random.Generator, size: int, width: float) -> Floats:
    """Smooth noise of mean about 0 and variance 1; the width is in half image sides."""
    noise = gaussian(rng.standard_normal((size, size), dtype=np.float32), width * size / 2)
    return noise / noise.std()
