"""From an item's bytes to its uint8 row; whatever a file may hold, the answer is a row or one short reason."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sdfast.data.config import DataConfig
from sdfast.data.items import Raw
from sdfast.modalities.images.levels import (
    Deep,
    NoRange,
    Range,
    deep_picture,
    flattened,
    largest_declared,
    mend_key,
    raw_mode,
)
from sdfast.modalities.images.transform import Transform

if TYPE_CHECKING:
    from PIL.Image import Image

# Recognised by their first bytes; none needs an outside program (EPS, for one, would start Ghostscript).
_FORMATS = ("JPEG", "PNG", "BMP", "DIB", "GIF", "TIFF", "WEBP", "PPM", "AVIF", "JPEG2000")
_ORIENTATION = 0x0112  # EXIF tag; 1 = upright

_BITS, _COMPRESSION, _BANDS, _PLANES, _EXTRA, _FORMAT = 258, 259, 277, 284, 338, 339  # tags of TIFF
_SAMPLE_KINDS = {2: "signed ", 3: "floating-point ", 5: "complex ", 6: "complex "}

_MAPS, _SETTERS = Path("/proc/self/maps"), ("TIFFSetErrorHandler", "TIFFSetWarningHandler")

# What was done to an image that a person may not expect; counted while packing.
ANIMATED, ROTATED, TRANSPARENT, GREY16, CMYK = "animated", "exif_rotation", "transparent", "grey16", "cmyk"
COLOUR16, CUT16, CLIPPED, EXTRA_BANDS, PROFILE = "colour16", "cut16", "clipped", "extra_bands", "colour_profile"
BANNER, BLANK, FAINT = "banner", "blank", "faint"
OTHER_ASPECT, TILED = "other_aspect", "tiled"
FAINT_BELOW = 1.0  # standard deviation, of 255, in every channel of a row


class BrokenImage(Exception):
    """An item that gives no row; its text is the reason, without the item's name."""


def decode(
    raw: Raw | OSError,
    transform: Transform,
    options: DataConfig,
    banner: int = 0,
    levels: Range | None = None,
    sizes: list[tuple[int, int]] | None = None,
) -> tuple[NDArray[np.uint8], frozenset[str]]:
    """The row of an item's content.

    The content decides, not the suffix. Of an animation the first frame is taken. The size is checked against
    `options.max_pixels` before any pixel is decoded. More than 8 bits become 8, what is transparent is put on
    `options.background`, and then the image is resized.

    Args:
        raw: the item's content, or why it could not be read.
        transform: from image to row.
        options: `max_pixels`, `background`, `exif_rotation` and `range`.
        banner: see `Item`.
        levels: the range of the source, for images of more than 8 bits a channel where `options.range` is `auto`.
        sizes: the width and height of the image before it is resized is added to it.

    Returns:
        row: [height, width, channels] uint8; of a transform that cuts tiles [k, height, width, channels].
        notes: which of `ANIMATED`, `ROTATED`, ..., `BLANK`, `FAINT` the image was.

    Raises:
        BrokenImage: when there is nothing to decode, or it is damaged, too large or without a known pixel range.
        NoRange: it has more than 8 bits a channel, and its range is neither in `options` nor given.
    """
    with _explained(raw, options):
        image, notes = _eight_bits(raw, options, levels)
        if banner >= image.height:
            raise BrokenImage(f"{image.height} pixels high, and {banner} of them are a banner")
        if banner:
            image = image.crop((0, 0, image.width, image.height - banner))
            notes.add(BANNER)
        if sizes is not None:
            sizes.append(image.size)
        row = transform.apply(image)
        pixels = row.reshape(-1, row.shape[-1])
        if (pixels == pixels[0]).all():
            notes.add(BLANK)
        elif pixels.std(axis=0, dtype=np.float64).max() < FAINT_BELOW:
            notes.add(FAINT)
        return row, frozenset(notes)


def picture(raw: Raw | OSError, options: DataConfig, levels: Range | None = None) -> Image:
    """The image of an item's content before it is resized: 8 bits a channel, upright, on its background.

    Raises:
        BrokenImage, NoRange: see `decode`.
    """
    with _explained(raw, options):
        return _eight_bits(raw, options, levels)[0]


def ceiling(raw: Raw | OSError, options: DataConfig) -> tuple[int, int]:
    """What the range of a source has to hold for the sake of one item of it.

    Returns:
        ceiling: see `Deep.ceiling`; 0 for an image of 8 bits a channel and for one that cannot be used.
        largest: its largest sample, likewise.
    """
    try:
        with _explained(raw, options):
            deep = None if isinstance(raw, np.ndarray | OSError) else _load(raw, options)[1]
            return (0, 0) if deep is None else (deep.ceiling(), int(deep.samples.max()))
    except BrokenImage:
        return 0, 0


@contextlib.contextmanager
def _explained(raw: Raw | OSError, options: DataConfig) -> Iterator[None]:
    """Whatever goes wrong with an item's content becomes one `BrokenImage`."""
    from PIL import Image, UnidentifiedImageError

    try:
        yield
    except (BrokenImage, NoRange):
        raise
    except UnidentifiedImageError:
        raise BrokenImage(_unknown(raw)) from None
    except Image.DecompressionBombError:
        raise BrokenImage(f"more pixels than data.max_pixels={options.max_pixels}") from None
    except ValueError as error:
        raise BrokenImage(str(error)) from error
    except Exception as error:  # the plugins raise anything on damaged files: OSError, SyntaxError, struct.error, ...
        raise BrokenImage(f"truncated or damaged ({str(error) or type(error).__name__})") from error


def _eight_bits(raw: Raw | OSError, options: DataConfig, levels: Range | None) -> tuple[Image, set[str]]:
    """The image with 8 bits a channel and without transparency, and what it was."""
    from PIL import Image

    if isinstance(raw, OSError):
        raise BrokenImage(f"cannot be read ({raw.strerror or raw})")
    if len(raw) == 0:
        raise BrokenImage("empty (0 bytes)")
    if isinstance(raw, np.ndarray):
        image, deep, notes = Image.fromarray(raw), None, set[str]()
    else:
        image, deep, notes = _load(raw, options)
    if deep is not None:
        if options.range != "auto":
            levels = options.range
        else:
            deep.ceiling()  # says so when it can have none
        if levels is None:
            raise NoRange
        if deep.samples.min() < levels[0] or deep.samples.max() > levels[1]:
            notes.add(CLIPPED)
        image = deep.image(levels)
    image, transparent = flattened(image, options.background)
    return image, notes | ({TRANSPARENT} if transparent else set())


def _load(raw: bytes, options: DataConfig) -> tuple[Image, Deep | None, set[str]]:
    """A file decoded and turned upright; its samples where it has more than 8 bits a channel; what it was."""
    from PIL import Image, ImageOps

    def opened() -> Any:
        return Image.open(io.BytesIO(raw), formats=_known_formats())

    def turned(file: Image.Image) -> Image.Image:
        return ImageOps.exif_transpose(file) if options.exif_rotation == "apply" else file

    def again(mode: str) -> Image.Image:
        with opened() as file:
            for number, tile in enumerate(file.tile):  # the arguments of a decoder begin with the raw mode
                args = mode if isinstance(tile.args, str) else (mode, *tile.args[1:])
                file.tile[number] = tile._replace(args=args)
            file.load()
            return turned(file)

    with opened() as file:
        if file.width * file.height > options.max_pixels:
            raise BrokenImage(f"{file.width} x {file.height} pixels are more than data.max_pixels={options.max_pixels}")
        planes = _tag(file, _PLANES, 1) == 2
        if planes and _tag(file, _BITS, 8) > 8 and _tag(file, _COMPRESSION, 1) == 1:  # PIL would read them as of 8 bits
            raise BrokenImage(
                "a TIFF of more than 8 bits with a plane for each channel; save it with interleaved channels"
            )
        stored, declared, nameless = raw_mode(file), largest_declared(file), _nameless_band(file)
        notes = _notes(file)  # after those: it loads some files, and then they are forgotten
        file.load()
        mend_key(file, stored)
        image = turned(file)
    deep = deep_picture(image, "" if planes else stored, declared, again)
    if nameless:
        image, deep = image.convert("RGB"), deep and replace(deep, alpha=None)
    if deep is not None:
        notes.add(GREY16 if deep.samples.ndim == 2 else COLOUR16)
    elif ";16" in stored:
        notes.add(CUT16)
    return image, deep, notes


def _notes(image: Image) -> set[str]:
    """What an opened image is by its header."""
    said = {  # a phone's MPO holds previews, no animation; PIL turns a TIFF while it decodes
        ANIMATED: getattr(image, "is_animated", False) and image.format != "MPO",
        ROTATED: image.format != "TIFF" and image.getexif().get(_ORIENTATION, 1) != 1,
        CMYK: image.mode == "CMYK",
        EXTRA_BANDS: _nameless_band(image) or _tag(image, _BANDS, 1) > len(image.getbands()),
    }
    profile = image.info.get("icc_profile") or b""
    said[PROFILE] = bool(profile) and b"sRGB" not in profile and "sRGB".encode("utf-16-be") not in profile
    return {note for note, holds in said.items() if holds}


def _tag(image: Image, tag: int, default: int) -> int:
    """A TIFF's tag, the first number of several; the default without it and for any other format."""
    value = image.tag_v2.get(tag, default) if image.format == "TIFF" else default  # type: ignore[attr-defined]
    return int(value[0] if isinstance(value, tuple) else value)


def _nameless_band(image: Image) -> bool:
    """Whether a TIFF has a fourth band that PIL takes for alpha though the file does not say what it is."""
    return image.format == "TIFF" and image.mode == "RGBA" and _tag(image, _EXTRA, -1) == -1


def _unknown(raw: Raw | OSError) -> str:
    """Why PIL does not know a file: of a TIFF, what it holds."""
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    reason = "not an image of a known format"
    if not isinstance(raw, bytes) or raw[:4] not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return reason
    try:
        file = io.BytesIO(raw)
        tags = ImageFileDirectory_v2(file.read(16 if b"+" in raw[2:4] else 8))
        file.seek(tags.next)
        tags.load(file)
        bands, bits = int(tags[_BANDS]), max(tags[_BITS])
        many = "s" if bands > 1 else ""
        kind = _SAMPLE_KINDS.get(max(tags.get(_FORMAT, (1,))), "")
    except Exception:  # damaged directories raise anything
        return reason
    return (
        f"a TIFF of {bands} band{many} of {bits}-bit {kind}samples, which cannot be decoded; save red, green and blue, "
        "or one band, with 8 or 16 bits"
    )


@functools.cache
def _known_formats() -> tuple[str, ...]:
    from PIL import Image

    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


@contextlib.contextmanager
def decoding(options: DataConfig) -> Iterator[None]:
    """PIL's process-wide settings while a source is decoded: our bound on the pixels, no warnings or log of its own."""
    from PIL import Image

    _known_formats()
    before, log = Image.MAX_IMAGE_PIXELS, logging.getLogger("PIL")
    level = log.level
    Image.MAX_IMAGE_PIXELS = options.max_pixels
    log.setLevel(logging.CRITICAL + 1)  # it would say of each file what the reason of a skipped one says
    try:
        with warnings.catch_warnings(), _quiet_libtiff():
            warnings.filterwarnings("ignore", module=r"PIL\.")
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before
        log.setLevel(level)


@contextlib.contextmanager
def _quiet_libtiff() -> Iterator[None]:
    """Take libtiff's message handlers away for a while; what went wrong PIL still raises.

    For each damaged file they would print several lines on stderr, which Python cannot catch. Where libtiff is no
    shared library of the process, nothing is done.
    """
    with contextlib.ExitStack() as stack:
        for library in _loaded():
            for name in _SETTERS:
                setter = getattr(library, name)
                setter.restype, setter.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
                stack.callback(setter, setter(None))
        yield


def _loaded() -> list[ctypes.CDLL]:
    """The libtiffs in the process (a package may bring its own)."""
    try:
        lines = _MAPS.read_text().splitlines()
        paths = {line.split(maxsplit=5)[-1] for line in lines if "/libtiff" in line}
        libraries = [ctypes.CDLL(path) for path in sorted(paths)]
    except OSError:  # another system, or a file that has been replaced since
        return []
    return [library for library in libraries if all(hasattr(library, name) for name in _SETTERS)]
