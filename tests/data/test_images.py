import subprocess
import sys
from itertools import product
from pathlib import Path

import cv2
import numpy as np
import pytest
from anomalib.data.utils import read_mask as anomalib_read_mask
from PIL import Image, PngImagePlugin

from padim_bottle.data.images import read_image, read_mask
from padim_bottle.errors import UserError


@pytest.fixture
def rgb():
    return np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)


def in_pillow(path):
    return np.asarray(Image.open(path).convert("RGB"))


@pytest.mark.parametrize(
    ("mode", "suffix"),
    # BMP has no LA.
    sorted({*product(["RGB", "L", "LA", "RGBA", "P", "1"], [".png", ".tiff", ".bmp"])} - {("LA", ".bmp")}),
)
def test_every_mode_reads_as_in_pillow(tmp_path, rgb, mode, suffix):
    path = tmp_path / f"image{suffix}"
    Image.fromarray(rgb).convert(mode).save(path)
    image = read_image(path)
    assert image.shape == (37, 53, 3)
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, in_pillow(path))


def test_rgb_png_is_lossless_from_str_and_path(tmp_path, rgb):
    path = tmp_path / "image.png"
    Image.fromarray(rgb).save(path)
    np.testing.assert_array_equal(read_image(path), rgb)
    np.testing.assert_array_equal(read_image(str(path)), rgb)


@pytest.mark.parametrize(
    ("chunk", "content"),
    [
        (b"gAMA", (45455).to_bytes(4, "big")),
        (b"gAMA", (220000).to_bytes(4, "big")),
        (b"sRGB", b"\0"),
        (b"tEXt", b"Comment\0made by a test"),
        (b"bKGD", bytes(6)),
        (b"abCd", b"a private chunk"),
    ],
)
def test_chunks_beside_the_pixels_change_nothing(tmp_path, rgb, chunk, content):
    rgb[0, 0] = (1, 2, 3)
    info = PngImagePlugin.PngInfo()
    info.add(chunk, content)
    path = tmp_path / "image.png"
    Image.fromarray(rgb).save(path, pnginfo=info)
    assert chunk in path.read_bytes()
    np.testing.assert_array_equal(read_image(path), rgb)


def test_transparent_colour_is_kept(tmp_path, rgb):
    rgb[0, 0] = (1, 2, 3)
    path = tmp_path / "image.png"
    Image.fromarray(rgb).save(path, transparency=(1, 2, 3))
    assert b"tRNS" in path.read_bytes()
    np.testing.assert_array_equal(read_image(path), rgb)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg(tmp_path, rgb, mode):
    path = tmp_path / "image.jpg"
    Image.fromarray(rgb).convert(mode).save(path)
    np.testing.assert_array_equal(read_image(path), in_pillow(path))


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_16_bit_grey_is_scaled_not_clipped(tmp_path, suffix):
    path = tmp_path / f"image{suffix}"
    ramp = np.linspace(0, 65535, 64 * 64).astype(np.uint16).reshape(64, 64)
    assert cv2.imwrite(str(path), ramp)
    image = read_image(path)
    expected = np.repeat((ramp / 257)[..., None], 3, axis=2)
    assert np.abs(image - expected).max() <= 1
    assert image.min() == 0
    assert image.max() == 255


def test_16_bit_rgb_is_scaled(tmp_path):
    path = tmp_path / "image.png"
    rgb = np.random.default_rng(0).integers(0, 65536, (20, 30, 3), dtype=np.uint16)
    assert cv2.imwrite(str(path), rgb[..., ::-1])
    assert np.abs(read_image(path) - rgb / 257).max() <= 1


def test_exif_rotation_is_applied(tmp_path, rgb):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned clockwise by a quarter
    for suffix, tolerance in ((".png", 0), (".jpg", 0)):
        plain, turned = tmp_path / f"plain{suffix}", tmp_path / f"turned{suffix}"
        Image.fromarray(rgb).save(plain)
        Image.fromarray(rgb).save(turned, exif=exif)
        np.testing.assert_allclose(read_image(turned), np.rot90(read_image(plain), -1), atol=tolerance)


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
def test_first_frame_is_taken(tmp_path, rgb, suffix):
    path = tmp_path / f"frames{suffix}"
    Image.fromarray(rgb).save(path, save_all=True, append_images=[Image.fromarray(255 - rgb)])
    np.testing.assert_array_equal(read_image(path), rgb)


@pytest.mark.parametrize("mode", ["RGB", "L", "P"])
@pytest.mark.parametrize("keep", [0, 10, 40, 0.5, 0.9, -30])
def test_truncated_png_is_refused_by_name(tmp_path, rgb, mode, keep):
    path = tmp_path / "image.png"
    Image.fromarray(rgb).convert(mode).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(UserError, match=r"image\.png"):
        read_image(path)


@pytest.mark.parametrize("cut", [1, 12])
def test_png_that_lacks_only_its_end_mark_keeps_its_pixels(tmp_path, rgb, cut):
    path = tmp_path / "image.png"
    Image.fromarray(rgb).save(path)
    path.write_bytes(path.read_bytes()[:-cut])
    np.testing.assert_array_equal(read_image(path), rgb)


def test_truncated_jpeg_is_refused(tmp_path, rgb):
    path = tmp_path / "image.jpg"
    Image.fromarray(rgb).save(path)
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(UserError, match="truncated"):
        read_image(path)


@pytest.mark.parametrize("read", [read_image, read_mask])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_flipped_bit_is_noticed(tmp_path, rgb, mode, read):
    path = tmp_path / "image.png"
    Image.fromarray(rgb).convert(mode).save(path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"image\.png"):
        read(path)


@pytest.mark.parametrize("read", [read_image, read_mask])
def test_no_image_missing_or_a_folder(tmp_path, read):
    (tmp_path / "notes.png").write_text("not an image")
    (tmp_path / "folder.png").mkdir()
    for name in ("notes.png", "folder.png", "missing.png"):
        with pytest.raises(UserError, match=name):
            read(tmp_path / name)


def test_32_bit_values_are_refused(tmp_path):
    for name, dtype in (("float.tiff", np.float32), ("int.tiff", np.int32)):
        Image.fromarray(np.ones((4, 4), dtype)).save(tmp_path / name)
        with pytest.raises(UserError, match=f"{name}.*8 or 16 bits"):
            read_image(tmp_path / name)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGB", "LA"])
def test_mask_equals_anomalibs(tmp_path, mode):
    grey = np.random.default_rng(0).choice([0, 1, 128, 255], (31, 45)).astype(np.uint8)
    path = tmp_path / "mask.png"
    Image.fromarray(grey).convert(mode).save(path)
    mask = read_mask(path)
    assert mask.dtype == np.uint8
    assert set(np.unique(mask)) == {0, 1}
    np.testing.assert_array_equal(mask, anomalib_read_mask(path, as_tensor=True).numpy())


def test_16_bit_mask_keeps_small_values(tmp_path):
    path = tmp_path / "mask.png"
    values = np.array([[0, 1], [255, 65535]], np.uint16)
    assert cv2.imwrite(str(path), values)
    np.testing.assert_array_equal(read_mask(path), [[0, 1], [1, 1]])


def test_light_modules_import_neither_torch_nor_anomalib():
    code = (
        "import sys, padim_bottle.data.download, padim_bottle.data.images, padim_bottle.data.layout;"
        "assert not {'torch', 'anomalib', 'huggingface_hub'} & set(sys.modules), 'heavy import'"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.real_data
def test_bottle_reads_as_in_pillow(mvtec_root: Path):
    paths = sorted((mvtec_root / "bottle").glob("t*/*/00[0-3].png"))
    assert len(paths) == 20
    for path in paths:
        np.testing.assert_array_equal(read_image(path), in_pillow(path))
    for path in (mvtec_root / "bottle" / "ground_truth").glob("*/00[0-3]_mask.png"):
        np.testing.assert_array_equal(read_mask(path), np.asarray(Image.open(path).convert("L")) > 0)
