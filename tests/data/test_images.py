import struct
import warnings
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from padim_bottle.data import images
from padim_bottle.data.images import bits_in_use, is_image, is_transparent, read_image, read_mask, read_size
from padim_bottle.errors import UserError


@pytest.fixture
def rgb():
    return np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)


def in_pillow(path):
    """As Pillow reads it, laid over white."""
    image = Image.open(path).convert("RGBA")
    return np.asarray(Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB"))


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


def test_what_is_transparent_shows_white_whatever_colour_hides_there(tmp_path, rgb):
    rgb[0, 0] = (1, 2, 3)
    path = tmp_path / "image.png"
    Image.fromarray(rgb).save(path, transparency=(1, 2, 3))
    assert b"tRNS" in path.read_bytes()
    expected = rgb.copy()
    expected[(rgb == (1, 2, 3)).all(axis=-1)] = 255
    np.testing.assert_array_equal(read_image(path), expected)
    assert is_transparent(path)
    alpha = np.full((*rgb.shape[:2], 1), 255, np.uint8)
    alpha[:9], alpha[9] = 0, 51
    for mode, hidden in (("RGBA", (0, 255, 0)), ("RGBA", (255, 0, 255)), ("LA", (9, 9, 9))):
        cut_out = np.concatenate([rgb, alpha], axis=-1)
        cut_out[:9, :, :3] = hidden
        Image.fromarray(cut_out).convert(mode).save(path)
        image = read_image(path)
        assert (image[:9] == 255).all()
        shown = np.asarray(Image.fromarray(rgb).convert(mode[:-1]).convert("RGB")).astype(float)
        np.testing.assert_array_equal(image[10:], shown[10:])
        np.testing.assert_allclose(image[9], 255 * 0.8 + shown[9] * 0.2, atol=0.5)


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("bits", [8, 10, 12, 16])
def test_16_bits_of_which_fewer_are_in_use_keep_256_levels(tmp_path, suffix, channels, bits):
    path = tmp_path / f"image{suffix}"
    ramp = np.linspace(0, 2**bits - 1, 64 * 64).astype(np.uint16).reshape(64, 64)
    assert cv2.imwrite(str(path), ramp if channels == 1 else np.stack([ramp, ramp[::-1], ramp.T], axis=-1))
    assert bits_in_use(path) == bits
    image = read_image(path, bits)
    expected = ramp if channels == 1 else np.stack([ramp.T, ramp[::-1], ramp], axis=-1)
    expected = expected.reshape(64, 64, -1) * (255 / (2**bits - 1))
    assert np.abs(image - expected).max() <= 1
    assert len(np.unique(image)) == 256
    # A brighter photo than those of the training is not turned around.
    if bits < 16:
        assert cv2.imwrite(str(path), np.full((4, 4), 2**bits + 1, np.uint16))
        assert read_image(path, bits).min() == 255


def test_8_bit_photos_are_read_alike_whatever_the_scale(tmp_path, rgb):
    path = tmp_path / "image.png"
    Image.fromarray(rgb).save(path)
    assert bits_in_use(path) == 0
    np.testing.assert_array_equal(read_image(path, 10), rgb)
    assert not is_transparent(path)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_16_bit_colour_lies_as_8_bit_colour_does(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    grid = np.arange(45, dtype=np.uint8).reshape(3, 5, 3)
    plain, deep = tmp_path / "plain.png", tmp_path / "deep.png"
    Image.fromarray(grid).save(plain, exif=exif)
    assert cv2.imwrite(str(deep), grid[..., ::-1].astype(np.uint16) * 256)
    content = deep.read_bytes()
    chunk = b"eXIf" + exif.tobytes()[6:]
    chunk = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    deep.write_bytes(content[:33] + chunk + content[33:])
    np.testing.assert_array_equal(read_image(deep), read_image(plain))
    assert read_size(deep) == read_size(plain) == read_image(plain).shape[1::-1]


@pytest.mark.parametrize("suffix", ["png", "jpg", "tiff", "webp"])
def test_a_large_photo_is_reduced_with_its_mask_and_a_larger_one_refused(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(images, "FULL_PIXELS", 100 * 100)
    monkeypatch.setattr(images, "MAX_PIXELS", 400 * 400)
    shade = np.linspace(0, 255, 301).astype(np.uint8)
    photo = np.repeat(np.stack([shade, shade[::-1], shade], axis=-1)[None], 201, axis=0)
    path = tmp_path / f"photo.{suffix}"
    Image.fromarray(photo).save(path)
    image = read_image(path)
    assert image.shape == (51, 76, 3)
    assert np.abs(image[:, :, 0].astype(float) - np.linspace(0, 255, 76)).max() < 9
    assert read_size(path) == (301, 201)
    mask = np.zeros((201, 301), np.uint8)
    mask[100, 150] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    assert read_mask(tmp_path / "mask.png").shape == (51, 76)
    assert read_mask(tmp_path / "mask.png").sum() == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Image.fromarray(np.zeros((401, 400), np.uint8)).save(path)
        for read in (read_image, read_mask, read_size):
            with pytest.raises(UserError, match=rf"photo.{suffix} has more than 160,000 pixels"):
                read(path)


def test_formats_are_known_by_content_and_only_a_few_are_opened(tmp_path, rgb):
    for name in ("JPEG", "WEBP", "GIF", "PPM", "BMP", "TIFF", "AVIF", "JPEG2000"):
        path = tmp_path / "photo.png"
        Image.fromarray(rgb).save(path, format=name)
        assert is_image(path)
        assert read_image(path).shape == rgb.shape
    for name in ("EPS", "ICO", "TGA", "PCX", "SGI"):
        Image.fromarray(rgb).save(path, format=name)
        assert not is_image(path)
        with pytest.raises(UserError, match=r"photo\.png"):
            read_image(path)
    path.write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    with pytest.raises(UserError, match=r"photo\.png.*(pillow-heif|truncated)"):
        read_image(path)


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


@pytest.mark.parametrize("read", [read_image, read_mask])
@pytest.mark.parametrize(("mode", "suffix"), [("RGB", "png"), ("L", "png"), ("RGB", "jpg")])
def test_a_flipped_bit_and_a_cut_jpeg_are_noticed(tmp_path, rgb, mode, suffix, read):
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(rgb).convert(mode).save(path)
    data = bytearray(path.read_bytes())
    if suffix == "png":
        data[len(data) // 2] ^= 1
    path.write_bytes(data if suffix == "png" else data[:-300])
    with pytest.raises(UserError, match=rf"image\.{suffix}" if suffix == "png" else "truncated"):
        read(path)


@pytest.mark.parametrize("read", [read_image, read_mask])
def test_no_image_missing_or_a_folder(tmp_path, read):
    (tmp_path / "notes.png").write_text("not an image")
    (tmp_path / "folder.png").mkdir()
    for name in ("notes.png", "folder.png", "missing.png"):
        with pytest.raises(UserError, match=name):
            read(tmp_path / name)


DEFECT = np.zeros((40, 50), bool)
DEFECT[10:20, 5:25] = DEFECT[30:33, 40:44] = True


def grey(defect, ground, dtype=np.uint8):
    return np.where(DEFECT, defect, ground).astype(dtype)


def palette(defect, ground):
    image = Image.fromarray(DEFECT.astype(np.uint8)).convert("P")
    image.putpalette([*ground, *defect])
    return image


def alpha(defect, ground):
    return np.where(DEFECT[..., None], defect, ground).astype(np.uint8)


def soft():
    """A white defect with soft edges, as a drawing program draws it: the middle of an edge is at half."""
    return cv2.GaussianBlur(np.kron(grey(255, 0), np.ones((4, 4), np.uint8)), (0, 0), 1.5)


MASKS = {
    "white on black": (grey(255, 0), "png"),
    "1 on 0": (grey(1, 0), "png"),
    "1-bit": (Image.fromarray(DEFECT), "png"),
    "inverted": (grey(0, 255), "png"),
    "grey on grey": (grey(90, 200), "bmp"),
    "16-bit": (grey(65535, 0, np.uint16), "png"),
    "16-bit, 1 on 0": (grey(1, 0, np.uint16), "tiff"),
    "16-bit, inverted": (grey(0, 65535, np.uint16), "png"),
    "lossy": (grey(255, 0), "jpg"),
    "lossy and inverted": (grey(0, 255), "jpg"),
    "lossy in colour": (alpha((255, 0, 0), (0, 0, 0)), "jpg"),
    "red on black": (alpha((255, 0, 0), (0, 0, 0)), "png"),
    "black on white, in colour": (alpha((0, 0, 0), (255, 255, 255)), "png"),
    "white on transparent": (alpha((255, 255, 255, 255), (255, 255, 255, 0)), "png"),
    "black on transparent": (alpha((0, 0, 0, 255), (0, 0, 0, 0)), "webp"),
    "nothing is transparent": (alpha((255, 255, 255, 255), (0, 0, 0, 255)), "png"),
    "palette": (palette((255, 255, 255), (0, 0, 0)), "png"),
    "palette with a light ground": (palette((0, 0, 0), (255, 255, 255)), "png"),
    "palette in colour": (palette((128, 0, 0), (250, 240, 230)), "gif"),
}


@pytest.mark.parametrize("kind", MASKS)
def test_masks_mark_the_defect_however_they_were_drawn(tmp_path, kind):
    drawn, suffix = MASKS[kind]
    path = tmp_path / f"mask.{suffix}"
    image = drawn if isinstance(drawn, Image.Image) else Image.fromarray(drawn)
    image.save(path, **({"lossless": True, "exact": True} if suffix == "webp" else {}))
    mask = read_mask(path)
    assert mask.dtype == np.uint8
    # JPEG keeps colours at half the resolution.
    assert (mask != DEFECT).sum() <= (2 if kind == "lossy in colour" else 0)


def test_soft_edges_are_cut_at_half_and_labels_are_not(tmp_path):
    path = tmp_path / "mask.png"
    for drawn in (soft(), 255 - soft()):
        Image.fromarray(drawn).save(path)
        wanted = np.kron(DEFECT, np.ones((4, 4), bool))
        difference = read_mask(path).astype(bool) ^ wanted
        assert difference.sum() <= 24  # at the eight corners
    labels = grey(0, 0)
    labels[DEFECT], labels[31, 41] = 3, 7
    labels[5, 5] = 1
    for dtype in (np.uint8, np.uint16):
        Image.fromarray(labels.astype(dtype)).save(path)
        np.testing.assert_array_equal(read_mask(path), labels > 0)
    coloured = np.array([[0, 0, 0], [200, 0, 0], [0, 90, 0], [0, 0, 30]], np.uint8)[labels % 4]
    Image.fromarray(coloured).save(path)
    np.testing.assert_array_equal(read_mask(path), labels % 4 > 0)


@pytest.mark.parametrize(("value", "marked"), [(0, 0), (1, 1), (255, 1)])
def test_a_mask_of_one_value_marks_all_or_nothing(tmp_path, value, marked):
    Image.fromarray(np.full((5, 7), value, np.uint8)).save(tmp_path / "mask.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.png"), np.full((5, 7), marked))


@pytest.mark.real_data
def test_bottle_reads_as_in_pillow(mvtec_root: Path):
    paths = sorted((mvtec_root / "bottle").glob("t*/*/00[0-3].png"))
    assert len(paths) == 20
    for path in paths:
        np.testing.assert_array_equal(read_image(path), in_pillow(path))
    for path in (mvtec_root / "bottle" / "ground_truth").glob("*/00[0-3]_mask.png"):
        np.testing.assert_array_equal(read_mask(path), np.asarray(Image.open(path).convert("L")) > 0)
