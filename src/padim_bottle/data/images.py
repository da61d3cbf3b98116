"""Reading images and masks of any ordinary kind into 8-bit arrays."""

import zlib
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from padim_bottle.errors import UserError

# OpenCV's own threads do not survive a fork, by which DataLoader starts its workers: the next call into OpenCV would
# then wait for ever. Nothing here gains from them.
cv2.setNumThreads(0)

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# IHDR's bit depth, colour type, compression, filter and interlacing of ordinary 8-bit RGB and greyscale.
_RGB_8_BIT = bytes((8, 2, 0, 0, 0))
_GREY_8_BIT = bytes((8, 0, 0, 0, 0))
# Chunks that change no pixel. Others (tRNS, eXIf, acTL, ...) leave the file to Pillow.
_PLAIN_CHUNKS = {*b"IHDR gAMA cHRM sRGB pHYs tIME tEXt zTXt bKGD IDAT IEND".split()}


def read_image(path: str | Path) -> np.ndarray:
    """Read an image as 8-bit RGB.

    8-bit and 16-bit greyscale, RGB, RGBA (alpha is dropped), CMYK, palette and 1-bit images are read; 16-bit values
    are scaled to 8 bits. An EXIF rotation is applied, so that an image and the mask drawn on it lie as a viewer shows
    them, and of an animation the first frame is taken. 32-bit values (float TIFF) are refused: their range is unknown.

    Args:
        path: A PNG, JPEG, BMP or TIFF file, or any other that Pillow reads.

    Returns:
        Array of shape (H, W, 3), uint8, channels in the order red, green, blue.

    Raises:
        UserError: If the file is missing, unreadable, truncated or of an unknown kind.
    """
    data = _read_bytes(path)
    # OpenCV decodes a plain PNG a fifth faster than Pillow, to the same pixels.
    if _is_plain_png(data, _RGB_8_BIT, _GREY_8_BIT):
        image = _decode_with_opencv(data, path, cv2.IMREAD_COLOR)
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)
    return _decode_with_pillow(data, path, "RGB")


def read_mask(path: str | Path) -> np.ndarray:
    """Read a ground-truth mask.

    Args:
        path: A mask in any format that :func:`read_image` reads.

    Returns:
        Array of shape (H, W), uint8: 1 where the mask is above 0 (anomalous), else 0.

    Raises:
        UserError: As :func:`read_image`.
    """
    data = _read_bytes(path)
    if _is_plain_png(data, _GREY_8_BIT):
        grey = _decode_with_opencv(data, path, cv2.IMREAD_GRAYSCALE)
    else:
        grey = _decode_with_pillow(data, path, "L")
    return (grey > 0).astype(np.uint8)


def _read_bytes(path: str | Path) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"Cannot read the image {path}: {error.strerror}. Check path and permissions.") from None


def _is_plain_png(data: bytes, *kinds: bytes) -> bool:
    """Whether ``data`` is a PNG of one of the given kinds, whole to the last checksum.

    The checksums are compared here because not every OpenCV release refuses a truncated PNG.
    """
    if not data.startswith(_PNG_SIGNATURE) or data[24:29] not in kinds:
        return False
    width, height = (int.from_bytes(data[start : start + 4], "big") for start in (16, 20))
    if width * height > (Image.MAX_IMAGE_PIXELS or 0):
        return False
    view, start = memoryview(data), len(_PNG_SIGNATURE)
    while start + 12 <= len(data):
        kind, end = data[start + 4 : start + 8], start + 8 + int.from_bytes(data[start : start + 4], "big")
        checksum = data[end : end + 4]
        if kind not in _PLAIN_CHUNKS or zlib.crc32(view[start + 4 : end]) != int.from_bytes(checksum, "big"):
            return False
        if kind == b"IEND":
            return len(checksum) == 4
        start = end + 4
    return False


def _decode_with_opencv(data: bytes, path: str | Path, flags: int) -> np.ndarray:
    image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if image is None:  # Pillow would leave rows that are missing black
        raise _undecodable(data, path, "its pixels are not all there")
    return image


def _decode_with_pillow(data: bytes, path: str | Path, mode: str) -> np.ndarray:
    """Decode to 8-bit "RGB" (H, W, 3), or to "L" (H, W), which keeps 16 bits where there are any."""
    try:
        image = Image.open(BytesIO(data))
        image.load()
        if image.mode in ("I", "F") and not _is_16_bit_grey(image):
            raise UserError(f"The image {path} has 32-bit values, whose range is not known. Save it with 8 or 16 bits.")
        image = ImageOps.exif_transpose(image)
        if _is_16_bit_grey(image):
            grey = np.asarray(image)
            if mode == "L":
                return grey
            image = Image.fromarray((grey >> 8).astype(np.uint8))
        return np.array(image.convert(mode))  # a copy, for Pillow's own memory is read-only
    except UserError:
        raise
    except Exception as error:  # on broken files Pillow's decoders raise errors of any kind
        raise _undecodable(data, path, _reason(error)) from None


def _undecodable(data: bytes, path: str | Path, reason: str) -> UserError:
    return UserError(
        f"Cannot decode the image {path} ({len(data)} bytes): {reason}. "
        "The file is truncated or no image: copy or download it again, or remove it."
    )


def _reason(error: Exception) -> str:
    # Pillow names the in-memory buffer here, which tells the reader nothing.
    return "no known image format" if isinstance(error, UnidentifiedImageError) else " ".join(str(error).split())


def _is_16_bit_grey(image: Image.Image) -> bool:
    # Pillow before 11 opens a 16-bit PNG in its 32-bit mode "I".
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")
