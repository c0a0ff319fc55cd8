"""From an item's bytes to its uint8 row; whatever a file may hold, the answer is a row or one short reason."""

from __future__ import annotations

import contextlib
import functools
import io
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sdfast.data.config import DataConfig
from sdfast.data.items import Raw
from sdfast.data.transform import Transform

if TYPE_CHECKING:
    from PIL.Image import Image

# Recognised by their first bytes; none needs an outside program (EPS, for one, would start Ghostscript).
_FORMATS = ("JPEG", "PNG", "BMP", "DIB", "GIF", "TIFF", "WEBP", "PPM", "AVIF", "JPEG2000")
_ORIENTATION = 0x0112  # EXIF tag; 1 = upright

# What was done to an image that a person may not expect; counted while packing.
ANIMATED, ROTATED, TRANSPARENT, GREY16, CMYK = "animated", "exif_rotation", "transparent", "grey16", "cmyk"
BANNER = "banner"


class BrokenImage(Exception):
    """An item that gives no row; its text is the reason, without the item's name."""


def decode(
    raw: Raw | OSError, transform: Transform, options: DataConfig, banner: int = 0
) -> tuple[NDArray[np.uint8], frozenset[str]]:
    """The row of an item's content.

    The content decides, not the suffix. Of an animation the first frame is taken. The size is checked against
    `options.max_pixels` before any pixel is decoded.

    Args:
        raw: the item's content, or why it could not be read.
        transform: from image to row.
        options: `max_pixels` and `exif_rotation`.
        banner: see `Item`.

    Returns:
        row: [height, width, channels] uint8.
        notes: which of `ANIMATED`, `ROTATED`, `TRANSPARENT`, `GREY16`, `CMYK`, `BANNER` the image was.

    Raises:
        BrokenImage: when there is nothing to decode, or it is damaged, too large or without a known pixel range.
    """
    from PIL import Image, UnidentifiedImageError

    if isinstance(raw, OSError):
        raise BrokenImage(f"cannot be read ({raw.strerror or raw})")
    if len(raw) == 0:
        raise BrokenImage("empty (0 bytes)")
    try:
        if isinstance(raw, np.ndarray):
            return transform.apply(_without(banner, Image.fromarray(raw))), frozenset({BANNER} if banner else ())
        with Image.open(io.BytesIO(raw), formats=_known_formats()) as image:
            if image.width * image.height > options.max_pixels:
                raise BrokenImage(
                    f"{image.width} x {image.height} pixels are more than data.max_pixels={options.max_pixels}"
                )
            notes = _notes(image) | ({BANNER} if banner else set())
            image.load()
            notes |= _transparency(image)
            upright = _upright(image) if options.exif_rotation == "apply" else image
            return transform.apply(_without(banner, upright)), frozenset(notes)
    except BrokenImage:
        raise
    except UnidentifiedImageError:
        raise BrokenImage("not an image of a known format") from None
    except Image.DecompressionBombError:
        raise BrokenImage(f"more pixels than data.max_pixels={options.max_pixels}") from None
    except ValueError as error:
        raise BrokenImage(str(error)) from error
    except Exception as error:  # the plugins raise anything on damaged files: OSError, SyntaxError, struct.error, ...
        raise BrokenImage(f"truncated or damaged ({str(error) or type(error).__name__})") from error


def _notes(image: Image) -> set[str]:
    notes = set()
    if getattr(image, "is_animated", False) and image.format != "MPO":  # a phone's MPO holds previews, no animation
        notes.add(ANIMATED)
    if image.format != "TIFF" and image.getexif().get(_ORIENTATION, 1) != 1:  # PIL turns a TIFF while it decodes
        notes.add(ROTATED)
    if image.mode == "CMYK":
        notes.add(CMYK)
    if image.mode == "I" or image.mode.startswith("I;16"):
        notes.add(GREY16)
    return notes


def _transparency(image: Image) -> set[str]:
    if not image.has_transparency_data:
        return set()
    histogram = image.convert("RGBA").getchannel("A").histogram()
    return {TRANSPARENT} if any(histogram[:255]) else set()


def _upright(image: Image) -> Image:
    from PIL import ImageOps

    return ImageOps.exif_transpose(image)


def _without(banner: int, image: Image) -> Image:
    if banner >= image.height:
        raise BrokenImage(f"{image.height} pixels high, and {banner} of them are a banner")
    return image.crop((0, 0, image.width, image.height - banner)) if banner else image


@functools.cache
def _known_formats() -> tuple[str, ...]:
    from PIL import Image

    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


@contextlib.contextmanager
def decoding(options: DataConfig) -> Iterator[None]:
    """PIL's process-wide settings while a source is decoded: our bound on the pixels, and no warnings of its own."""
    from PIL import Image

    _known_formats()
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = options.max_pixels
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before
