"""Reading images and masks of any ordinary kind into 8-bit arrays."""

from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from padim_bottle.errors import SystemTroubleError, UserError, in_a_line

Image.init()
FORMATS = tuple(
    name
    for name in ("PNG", "JPEG", "BMP", "DIB", "TIFF", "WEBP", "GIF", "PPM", "JPEG2000", "HEIF", "AVIF")
    if name in Image.OPEN
)
"""What is read. Pillow opens more, some of it with programs that a stranger's file would start."""


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
    return _decode(path, "RGB")


def read_mask(path: str | Path) -> np.ndarray:
    """Read a ground-truth mask.

    Args:
        path: A mask in any format that :func:`read_image` reads.

    Returns:
        Array of shape (H, W), uint8: 1 where the mask is above 0 (anomalous), else 0.

    Raises:
        UserError: As :func:`read_image`.
    """
    return (_decode(path, "L") > 0).astype(np.uint8)


def is_image(path: str | Path) -> bool:
    """Whether a file's head is that of an image in one of ``FORMATS``."""
    try:
        with Image.open(path, formats=FORMATS):
            return True
    except Image.DecompressionBombError:
        return True
    except Exception:  # on broken files Pillow's decoders raise errors of any kind
        return False


def read_size(path: str | Path) -> tuple[int, int]:
    """Return an image's width and height in pixels, as stored; only the head of the file is read.

    Raises:
        UserError: As :func:`read_image`, as far as the head tells.
    """
    try:
        with Image.open(path) as image:
            return image.size
    except Exception as error:
        raise _refusal(path, error) from None


def _decode(path: str | Path, mode: str) -> np.ndarray:
    """Decode to 8-bit "RGB" (H, W, 3), or to "L" (H, W), which keeps 16 bits where there are any."""
    try:
        # From memory: of a TIFF that Pillow opens and closes itself, it turns the pixels twice.
        with Image.open(BytesIO(Path(path).read_bytes())) as opened:
            opened.load()
            image: Image.Image = opened
            if image.mode in ("I", "F") and not _is_16_bit_grey(image):
                raise UserError(
                    f"The image {path} has 32-bit values, whose range is not known. Save it with 8 or 16 bits."
                )
            image = ImageOps.exif_transpose(image)
            if _is_16_bit_grey(image):
                grey = np.array(image)
                if mode == "L":
                    return grey
                image = Image.fromarray((grey >> 8).astype(np.uint8))
            return np.array(image.convert(mode))  # a copy, for Pillow's own memory is read-only
    except UserError:
        raise
    except Exception as error:  # on broken files Pillow's decoders raise errors of any kind
        raise _refusal(path, error) from None


def _refusal(path: str | Path, error: Exception) -> UserError:
    if isinstance(error, OSError) and error.errno is not None:  # the file system's, not the decoder's
        return SystemTroubleError(f"Cannot read the image {path}: {error.strerror}. Check path and permissions.")
    if isinstance(error, MemoryError):
        return SystemTroubleError(f"Cannot read the image {path}: memory ran out. Close other programs.")
    unknown = isinstance(error, UnidentifiedImageError)
    reason = "it is of no known image format" if unknown else in_a_line(error)
    return UserError(
        f"Cannot decode the image {path}: {reason}. The file is truncated or no image: copy or download it again, or "
        "remove it."
    )


def _is_16_bit_grey(image: Image.Image) -> bool:
    # Pillow before 11 opens a 16-bit PNG in its 32-bit mode "I".
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")
