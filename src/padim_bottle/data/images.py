"""Reading photos and masks of any ordinary kind: one reader for training, test, prediction, tuning and app."""

import contextlib
import warnings
from collections.abc import Iterable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from padim_bottle.errors import SystemTroubleError, UserError, in_a_line
from padim_bottle.files import printable

with contextlib.suppress(ImportError):  # reads HEIC; not needed for anything else
    from pillow_heif import register_heif_opener

    register_heif_opener()

Image.init()
_LOSSY = ("JPEG", "MPO", "WEBP", "JPEG2000", "HEIF", "AVIF")
FORMATS = tuple(name for name in ("PNG", *_LOSSY, "BMP", "DIB", "TIFF", "GIF", "PPM") if name in Image.OPEN)
"""What is read. Pillow opens more, some of it with programs that a stranger's file would start."""
_NEED_PLUGIN = (b"heic", b"heix", b"hevc", b"mif1", b"msf1", b"avif")

FULL_PIXELS = 64_000_000
"""A photo of more pixels is read at a half or a quarter of its size."""
MAX_PIXELS = 400_000_000
"""A photo of more pixels is refused: 20,000 x 20,000, which take 1.2 GB to decode."""
Image.MAX_IMAGE_PIXELS = MAX_PIXELS
# Pillow warns of an attack from there on; it is refused here with a sentence instead.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

_WIDTH, _HEIGHT, _BITS_PER_SAMPLE, _ORIENTATION = 256, 257, 258, 274  # tags of TIFF, the last one of EXIF too
# In a lossless mask of so few values, which are coloured or dark, each value is a kind of defect.
_LABELS = 32

Pixels = NDArray[Any]


def read_image(path: str | Path, bits: int = 16) -> NDArray[np.uint8]:
    """Read a photo as 8-bit RGB.

    Greyscale, RGB, CMYK, palette and 1-bit photos of 8 and 16 bits are read; what is transparent is laid over white. An
    EXIF rotation is applied, so that a photo and the mask drawn on it lie as a viewer shows them, and of an animation
    the first frame is taken. 32-bit values (float TIFF) are refused: their range is unknown.

    Args:
        path: a file in one of ``FORMATS``, with any suffix.
        bits: how many of 16 bits are in use, see :func:`bits_in_use`: a camera of 12 bits fills 4,096 of 65,536 values.

    Returns:
        Array of shape (H, W, 3), uint8, channels in the order red, green, blue; of more than ``FULL_PIXELS``, a half or
        a quarter of the photo's height and width.

    Raises:
        UserError: the file is missing, unreadable, truncated, too large or of an unknown kind.
    """
    with _opened(path) as (image, content):
        width, height = (-(-side // _reduction(image)) for side in _size(image))
        pixels = _pixels(image, content, reduce=True)
    colour, alpha = _split(pixels)
    if pixels.dtype == np.uint16:
        colour = np.minimum(colour >> (bits - 8), 255).astype(np.uint8)
        alpha = (alpha >> 8).astype(np.uint8)
    if alpha.size:
        share = alpha.astype(np.uint16)
        colour = ((colour * share + 255 * (255 - share) + 127) // 255).astype(np.uint8)
    if colour.shape[:2] != (height, width):
        colour = cv2.resize(colour, (width, height), interpolation=cv2.INTER_AREA).reshape(height, width, -1)
    return np.repeat(colour, 3, axis=-1) if colour.shape[-1] == 1 else np.ascontiguousarray(colour)


def read_mask(path: str | Path) -> NDArray[np.uint8]:
    """Read a ground-truth mask, however it was drawn.

    Where a part of it is transparent, what is opaque is the defect. Else the ground is the value that most of the
    border has, and all other values are the defect. A mask of soft edges or of a lossy format is first cut at half.

    Args:
        path: a mask in any format that :func:`read_image` reads.

    Returns:
        Array of shape (H, W), uint8, of the size that the photo is read at: 1 on the defect, else 0.

    Raises:
        UserError: as :func:`read_image`.
    """
    with _opened(path) as (image, content):
        factor, lossy = _reduction(image), image.format in _LOSSY
        pixels = _pixels(image, content)
    colour, alpha = _split(pixels)
    top = int(np.iinfo(pixels.dtype).max)
    transparent = alpha.size and alpha.min() < top
    marked: Any = alpha[..., 0] > top // 2 if transparent else _not_the_ground(colour, top, lossy)
    if factor > 1:
        height, width = (-(-side // factor) for side in marked.shape)
        marked = np.pad(marked, ((0, -marked.shape[0] % factor), (0, -marked.shape[1] % factor)))
        marked = marked.reshape(height, factor, width, factor).any(axis=(1, 3))
    return marked.astype(np.uint8)


def _not_the_ground(colour: Pixels, top: int, lossy: bool) -> Pixels:
    """Return where a mask (H, W, 1 or 3), whose values could reach ``top``, marks a defect."""
    grey = colour.max(axis=-1)
    coloured = bool((colour != grey[..., None]).any())
    if coloured:
        colour = colour.astype(np.int64) @ np.array([1, 1 << 16, 1 << 32])
        values = len(np.unique(colour))
    else:
        colour, values = grey, int(np.count_nonzero(np.bincount(grey.ravel())))
    if values == 1:
        return np.asarray(grey > 0)
    brightest = int(grey.max())
    labels = not lossy and values <= _LABELS and (coloured or brightest <= top // 2)
    if values > 2 and not labels:
        colour = grey > top // 2 if lossy else grey >= 1 << (brightest.bit_length() - 1)
    border = np.concatenate([colour[0], colour[-1], colour[:, 0], colour[:, -1]])
    found, counts = np.unique(border, return_counts=True)
    return np.asarray(colour != found[counts.argmax()])


def read_size(path: str | Path) -> tuple[int, int]:
    """Return a photo's width and height in pixels as a viewer shows it; only the head of the file is decoded.

    Raises:
        UserError: as :func:`read_image`, as far as the head tells.
    """
    with _opened(path, head=True) as (image, _):
        return _size(image)


def full_size(path: str | Path, photo: NDArray[np.uint8]) -> tuple[int, int]:
    """Return height and width of a photo's file, also where :func:`read_image` made it smaller.

    Raises:
        UserError: as :func:`read_size`.
    """
    height, width = photo.shape[:2]
    if height * width > FULL_PIXELS // 5:  # what was made smaller has a quarter of more than that at least
        width, height = read_size(path)
    return height, width


def bits_in_use(path: str | Path) -> int:
    """Return how many bits the values of a 16-bit photo have, at least 8; 0 for any other, which is not decoded.

    Raises:
        UserError: as :func:`read_image`.
    """
    with _opened(path, head=True) as (image, content):
        if not (_is_deep_grey(image) or _is_deep_colour(image, content)):
            return 0
    with _opened(path) as (image, content):
        return max(8, int(_split(_pixels(image, content))[0].max()).bit_length())


def scale_of(photos: Iterable[str | Path]) -> int:
    """Return the bits with which :func:`read_image` reads photos of one kind: as many as any of them has in use.

    Raises:
        UserError: as :func:`read_image`.
    """
    return max(map(bits_in_use, photos), default=0) or 16


def is_transparent(path: str | Path) -> bool:
    """Whether a photo may have transparent parts; only the head of the file is decoded.

    Raises:
        UserError: as :func:`read_image`, as far as the head tells.
    """
    with _opened(path, head=True) as (image, _):
        return bool(image.has_transparency_data)


def is_image(path: str | Path) -> bool:
    """Tell whether a file's head is that of an image in one of ``FORMATS``."""
    try:
        with Image.open(path, formats=FORMATS):
            return True
    except Image.DecompressionBombError:
        return True
    except Exception:  # on broken files Pillow's decoders raise errors of any kind
        return False


@contextlib.contextmanager
def _opened(path: str | Path, *, head: bool = False) -> Iterator[tuple[Image.Image, bytes]]:
    """Open an image whose pixels are not decoded yet, and turn every error of it into a UserError.

    Yields:
        The image, and the file's content, or the first bytes of it where the head suffices.
    """
    content = b""
    try:
        with Path(path).open("rb") as file:
            content = file.read(64 if head else -1)
        # From memory: of a TIFF that Pillow opens and closes itself, it turns the pixels twice.
        with Image.open(path if head else BytesIO(content), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            yield image, content
    except UserError as error:
        raise UserError(f"The image {printable(path)} {error}") from None
    except Exception as error:  # on broken files Pillow's decoders raise errors of any kind
        raise _refusal(printable(path), content, error) from None


def _pixels(image: Image.Image, content: bytes, *, reduce: bool = False) -> Pixels:
    """Decode an image as a viewer shows it: (H, W, C) uint8 or uint16, grey or RGB, with alpha where there is some."""
    orientation = _orientation(image)
    deep = _is_deep_colour(image, content)
    if reduce and (factor := _reduction(image)) > 1:
        image.draft(None, (image.width // factor, image.height // factor))  # of JPEG alone
    image.load()
    if deep:  # Pillow keeps the upper 8 bits
        decoded: Any = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
        orientation = image.getexif().get(_ORIENTATION, 1) if image.format == "PNG" else orientation
        return _turned(decoded[..., [2, 1, 0, 3][: decoded.shape[-1]]], orientation)
    grey = _is_deep_grey(image)
    if image.mode in ("I", "F") and not grey:
        raise UserError("has 32-bit values, whose range is not known. Save it with 8 or 16 bits.")
    image = ImageOps.exif_transpose(image)
    if grey:
        return np.array(image).astype(np.uint16)[..., None]
    mode = "L" if image.mode in ("1", "L") else "RGB"
    if image.has_transparency_data:
        mode = "RGBA"
    pixels = np.array(image.convert(mode))  # a copy: Pillow's own memory is read-only
    return pixels.reshape(*pixels.shape[:2], -1)


def _split(pixels: Pixels) -> tuple[Pixels, Pixels]:
    """Return grey or colour (H, W, 1 or 3), and alpha (H, W, 1 or 0)."""
    colours = 1 if pixels.shape[-1] == 1 else 3
    return pixels[..., :colours], pixels[..., colours:]


def _turned(pixels: Pixels, orientation: int) -> Pixels:
    """Apply one of EXIF's eight orientations."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _size(image: Image.Image) -> tuple[int, int]:
    tags: Any = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    # Some versions of Pillow have turned a TIFF's size already.
    width, height = tags.get(_WIDTH, image.width), tags.get(_HEIGHT, image.height)
    return (height, width) if _orientation(image) >= 5 else (width, height)


def _orientation(image: Image.Image) -> int:
    """Return one of EXIF's eight orientations, before anything is decoded."""
    if image.format == "PNG" and not image.info.keys() & {"exif", "Raw profile type exif"}:
        return 1  # Pillow would decode all pixels to look behind them
    return int(image.getexif().get(_ORIENTATION, 1))


def _reduction(image: Image.Image) -> int:
    """Return by which factor, 1, 2 or 4, an image is made smaller; the same for its mask."""
    return next(factor for factor in (1, 2, 4) if image.width * image.height <= FULL_PIXELS * factor**2)


def _is_deep_grey(image: Image.Image) -> bool:
    # Pillow before 11 opens a 16-bit PNG in its 32-bit mode "I".
    return image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))


def _is_deep_colour(image: Image.Image, content: bytes) -> bool:
    if image.format == "PNG":
        return content[24:25] == b"\x10" and image.mode in ("RGB", "RGBA", "LA")
    tags: Any = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
    return image.mode in ("RGB", "RGBA") and max(tags.get(_BITS_PER_SAMPLE, (8,))) == 16


def _refusal(path: str, content: bytes, error: Exception) -> UserError:
    if isinstance(error, OSError) and error.errno is not None:  # the file system's, not the decoder's
        return SystemTroubleError(f"Cannot read the image {path}: {error.strerror}. Check path and permissions.")
    if isinstance(error, MemoryError):
        return SystemTroubleError(f"Cannot read the image {path}: memory ran out. Close other programs.")
    if isinstance(error, Image.DecompressionBombError):
        return UserError(f"The image {path} has more than {MAX_PIXELS:,} pixels, the limit: save it smaller.")
    if not isinstance(error, UnidentifiedImageError):
        reason = in_a_line(error)
    elif content[4:8] == b"ftyp" and content[8:12] in _NEED_PLUGIN:
        return UserError(
            f"The image {path} is in HEIC or AVIF, which this Pillow does not read: pip install pillow-heif."
        )
    else:
        reason = f"it is in none of the formats {', '.join(FORMATS)}"
    return UserError(
        f"Cannot decode the image {path}: {reason}. The file is truncated or no image: copy or download it again, or "
        "remove it."
    )
