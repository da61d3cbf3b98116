"""Images of every kind that a camera, a phone or a bad disk produces: read right, or refused by name."""

import json
import os
import struct
import sys
import warnings
import zlib
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import PIL
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from packaging.version import Version
from PIL import Image
from torchvision.transforms.v2 import Resize

from padim_bottle.commands.command_line import run_verb
from padim_bottle.data.images import read_image, read_mask
from padim_bottle.data.mvtec import MVTecAD
from padim_bottle.errors import UserError

ROOT = Path(__file__).parents[2]

# What each format can hold.
MODES = {
    "png": ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"],
    "tiff": ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "YCbCr"],
    "bmp": ["1", "L", "P", "RGB"],
    "jpeg": ["L", "RGB", "CMYK"],
    "gif": ["1", "L", "P", "RGB", "RGBA"],
    "webp": ["RGB", "RGBA"],
}
if Version(PIL.__version__).major < 13:
    # It does not read back the one that it writes; such a file is refused as damaged.
    MODES["tiff"].remove("YCbCr")
KINDS = [(suffix, mode) for suffix, modes in MODES.items() for mode in modes]
SIDES = st.one_of(st.integers(1, 40), st.sampled_from([1, 2, 3, 255, 256, 257, 1021]))

property_test = settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def make(mode, width, height, seed=0):
    """An image of noise."""
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 4), dtype=np.uint8)
    if mode == "I;16":
        return Image.fromarray(values.view(np.uint16)[..., 0].copy())
    if mode in ("RGBA", "CMYK"):
        return Image.fromarray(values, mode)
    return Image.fromarray(values[..., :3]).convert(mode)


def encode(image, suffix, **options):
    buffer = BytesIO()
    image.save(buffer, suffix, **options)
    return buffer.getvalue()


@given(st.sampled_from(KINDS), SIDES, SIDES, st.integers(0, 5))
@property_test
def test_any_mode_and_size_in_any_format(tmp_path, kind, width, height, seed):
    suffix, mode = kind
    path = tmp_path / f"image.{suffix}"
    path.write_bytes(encode(make(mode, width, height, seed), suffix))
    image, mask = read_image(path), read_mask(path)
    stored = Image.open(path)
    if mode == "I;16":
        values = np.asarray(stored).astype(float)
        assert np.abs(image - (values / 257)[..., None]).max() <= 1
    else:
        shown = Image.alpha_composite(Image.new("RGBA", stored.size, "white"), stored.convert("RGBA"))
        np.testing.assert_allclose(image, np.asarray(shown.convert("RGB")), atol=1 if "A" in mode else 0)
    assert set(np.unique(mask)) <= {0, 1}
    assert (image.shape, image.dtype) == ((height, width, 3), np.uint8)
    assert (mask.shape, mask.dtype) == ((height, width), np.uint8)


def png(width, height, depth, colour_type, pixels, extra=b""):
    """A PNG as its specification says, for the bit depths that Pillow does not write."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, depth, colour_type, 0, 0, 0)
    rows = b"".join(b"\0" + row for row in pixels)
    parts = chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_every_bit_depth_of_grey_spans_black_to_white(tmp_path, depth):
    values = np.arange(2**depth) if depth < 16 else np.linspace(0, 65535, 256).astype(int)
    bits = (values[:, None] >> np.arange(depth)[::-1]) & 1
    path = tmp_path / "grey.png"
    path.write_bytes(png(len(values), 1, depth, 0, [np.packbits(bits.astype(np.uint8)).tobytes()]))
    expected = values * 255 / (2**depth - 1)
    image = read_image(path)
    assert image.shape == (1, len(values), 3)
    assert np.abs(image[0] - expected[:, None]).max() <= 1
    assert (image[0, 0].max(), image[0, -1].min()) == (0, 255)


def attempt(read, path):
    try:
        return read(path), None
    except UserError as error:
        return None, str(error)


@given(st.sampled_from(KINDS), st.integers(0, 2**32 - 1), st.data())
@settings(property_test, max_examples=150)
def test_broken_bytes_are_an_image_or_refused_by_name(tmp_path, kind, seed, data):
    """Whatever a bad disk does to a file, nothing but UserError comes out, and what comes out is a picture."""
    suffix, mode = kind
    content = bytearray(encode(make(mode, 13, 9, seed), suffix))
    for _ in range(data.draw(st.integers(1, 3))):
        where = data.draw(st.integers(0, len(content) - 1))
        misdeed = data.draw(st.sampled_from(["change", "cut", "drop", "repeat"]))
        if misdeed == "change":
            content[where] = data.draw(st.integers(0, 255))
        elif misdeed == "cut":
            del content[max(where, 1) :]
        elif misdeed == "drop":
            del content[where : where + data.draw(st.integers(1, 9))]
        else:
            content[where:where] = content[where : where + 9]
        content = content or bytearray(b"\0")
    path = tmp_path / f"broken.{suffix}"
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for read, channels in ((read_image, (3,)), (read_mask, ())):
            array, refusal = attempt(read, path)
            if refusal is not None:
                assert f"broken.{suffix}" in refusal
                assert len(refusal.splitlines()) == 1
            else:
                assert array.dtype == np.uint8
                assert array.shape[2:] == channels


@pytest.mark.parametrize("orientation", range(1, 9))
def test_image_and_mask_lie_as_a_viewer_shows_them(tmp_path, orientation):
    """EXIF orientations as their standard says: where row 0 and column 0 of the file are to be seen."""
    grid = np.arange(15, dtype=np.uint8).reshape(3, 5) * 16
    as_shown = {
        1: grid, 2: grid[:, ::-1], 3: grid[::-1, ::-1], 4: grid[::-1],
        5: grid.T, 6: grid.T[:, ::-1], 7: grid[::-1, ::-1].T, 8: grid.T[::-1],
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    for suffix in ("png", "tiff"):
        path = tmp_path / f"turned.{suffix}"
        path.write_bytes(encode(Image.fromarray(grid), suffix, exif=exif))
        np.testing.assert_array_equal(read_image(path), np.repeat(as_shown[..., None], 3, axis=2))
        path.write_bytes(encode(Image.fromarray((grid == 48).astype(np.uint8)), suffix, exif=exif))
        np.testing.assert_array_equal(read_mask(path), as_shown == 48)


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tiff"])
def test_of_an_animation_the_first_frame_is_taken(tmp_path, suffix):
    frames = [Image.new("RGB", (6, 4), (level, level, level)) for level in (0, 120, 240)]
    path = tmp_path / f"frames.{suffix}"
    options = {"lossless": True} if suffix == "webp" else {}
    path.write_bytes(encode(frames[0], suffix, save_all=True, append_images=frames[1:], **options))
    assert getattr(Image.open(path), "n_frames", 1) == 3
    assert read_image(path).max() == 0
    assert read_mask(path).max() == 0


@pytest.mark.parametrize("value", [np.float32(np.nan), np.float32(np.inf), np.float32(0.5), np.int32(1)])
@pytest.mark.parametrize("read", [read_image, read_mask])
def test_32_bit_values_are_refused_whether_they_are_numbers_or_not(tmp_path, value, read):
    path = tmp_path / "deep.tiff"
    Image.fromarray(np.full((4, 4), value)).save(path)
    with pytest.raises(UserError, match=r"deep\.tiff.*32-bit.*8 or 16 bits"):
        read(path)


# --- The same, as a data set ---


def picture(path, width=40, height=30, level=90):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (level, level, level)).save(path)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (1, 5000), (5000, 3), (3000, 2000), (257, 255)])
def test_any_size_arrives_at_the_models(tmp_path, width, height):
    folder = tmp_path / "parts"
    picture(folder / "train" / "good" / "a.png", width, height, 51)
    picture(folder / "test" / "dent" / "a.png", width, height, 51)
    (folder / "ground_truth" / "dent").mkdir(parents=True)
    Image.new("L", (width, height), 255).save(folder / "ground_truth" / "dent" / "a_mask.png")
    datamodule = MVTecAD(tmp_path, "parts", num_workers=0)
    transform = Resize((24, 32), antialias=True)
    datamodule.trainer = SimpleNamespace(model=SimpleNamespace(pre_processor=SimpleNamespace(transform=transform)))
    datamodule.prepare_data()
    datamodule.setup()
    for defective, item in enumerate((datamodule.train_data[0], datamodule.test_data[0])):
        assert item.image.shape == (3, 24, 32)
        assert np.allclose(item.image, 0.2)
        assert item.gt_mask.shape == (24, 32)
        assert item.gt_mask.float().mean() == defective


@pytest.mark.skipif(sys.platform != "linux", reason="file names that are no Unicode")
def test_a_file_name_that_is_no_unicode_is_refused_by_name(tmp_path):
    picture(tmp_path / "parts" / "train" / "good" / "a.png")
    os.rename(  # noqa: PTH104
        os.fsencode(tmp_path / "parts" / "train" / "good" / "a.png"),
        os.fsencode(tmp_path / "parts" / "train" / "good") + b"/caf\xe9.png",
    )
    with pytest.raises(UserError, match=r"not valid Unicode.*caf"):
        MVTecAD(tmp_path, "parts").prepare_data()


@pytest.mark.slow
def test_a_run_on_a_folder_as_people_have_them(tmp_path, monkeypatch, random_weights):
    """Unicode and blanks in every name, upper-case suffixes, links, mixed kinds and sizes, an empty mask."""
    monkeypatch.chdir(tmp_path)
    root, category = tmp_path / "Bilder & Fotos ✓", "flasche nr. 1"
    kinds = {"Übung 01.PNG": "L", "b.JPG": "RGB", "c.Jpeg": "CMYK", "d.TIF": "RGBA", "e.bmp": "P", "f'\".tiff": "I;16"}
    store = tmp_path / "store"
    store.mkdir()
    for number, (name, mode) in enumerate(kinds.items()):
        suffix = {"jpg": "jpeg", "tif": "tiff"}.get(name.rsplit(".", 1)[1].lower(), name.rsplit(".", 1)[1].lower())
        image = make(mode, 30 + 7 * number, 64, seed=number)
        for folder in ("train/good", "test/good", "test/kratzer, tief"):
            path = root / category / folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            target = store / f"{number} {folder.replace('/', ' ')}"
            target.write_bytes(encode(image, suffix))
            path.symlink_to(target)
        mask = np.zeros((64, 30 + 7 * number), np.uint8)
        mask[10:30, 5:20] = 255 * (number > 0)  # the first one is empty
        path = root / category / "ground_truth" / "kratzer, tief" / f"{Path(name).stem}_mask.PNG"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(path)
    config = yaml.safe_load((ROOT / "configs" / "padim_resnet18.yaml").read_text())
    config["model"]["init_args"] |= {"image_size": [64, 64], "n_features": 20, "alpha": 0.3}
    config["data"]["init_args"] |= {"root": str(root), "category": category, "num_workers": 0}
    config["trainer"] |= {"accelerator": "cpu", "enable_progress_bar": False}
    config["trainer"]["callbacks"][0]["init_args"] |= {"experiment": "versuch_ä", "report": False}
    (tmp_path / "meins ä.yaml").write_text(yaml.safe_dump(config, allow_unicode=True), encoding="utf-8")

    assert run_verb("train", ["--config", "meins ä.yaml"]) == 0
    folder = tmp_path / "results" / "versuch_ä" / "seed_42"
    table = pd.read_csv(folder / "predictions.csv")
    assert sorted({Path(path).name for path in table.image_path}) == sorted(kinds)
    assert set(table.defect_type) == {"good", "kratzer, tief"}
    assert json.loads((folder / "metrics.json").read_text())["images"] == {"good": 6, "defective": 6}
    pictures = {path.relative_to(folder / "images").as_posix() for path in folder.glob("images/*/*.png")}
    assert pictures == {f"{defect}/{Path(name).stem}.png" for defect in ("good", "kratzer, tief") for name in kinds}
