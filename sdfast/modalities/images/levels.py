"""From samples of more than 8 bits to those of a pack, by one range for all pictures of a source; what is transparent.

A 16-bit file rarely says how much of its range is used: detectors of 10, 12 or 14 bits leave the upper part empty. A
stretch of each picture by its own extremes would lose how bright they are beside each other, so there is one range
for all: `data.range`, or from 0 to the least 2^k - 1 that holds every value of the source. A range is one pair for all
bands or a pair for each.

What is transparent is put on a background: the picture that a person sees, not the colours that lie under it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sdfast.data.config import KEEP
from sdfast.data.pack_build import LookAhead

if TYPE_CHECKING:
    from PIL.Image import Image

Pair = tuple[float, float]
Range = Pair | tuple[Pair, ...]

_LEVELS_OF_GREY = {"L;2": 3, "L;4": 15}  # largest sample of a PNG's grey of fewer than 8 bits

FULL: Pair = (0.0, 65535.0)
EIGHT: Pair = (0.0, 255.0)
_GREY_ALPHA = "LA;16B"  # a PNG of 16-bit grey and alpha
_OTHER_BYTES = {"B": "L", "L": "B", "N": "B" if sys.byteorder == "little" else "L"}
_HOW = "set data.range=[LOW,HIGH] or percentile, or save it with 8 or 16 bits a channel"
_NAN = "it has pixels that are not a number; data.nan=NUMBER fills them"


class NoRange(LookAhead):
    """A picture of more than 8 bits a channel was met, and the range of the source is not known yet."""


@dataclass(frozen=True)
class Deep:
    """A decoded picture of more than 8 bits a channel, or of bands that PIL has no mode for.

    Attributes:
        samples: [H, W] or [H, W, B]; unsigned or signed integers, or floating point.
        alpha: [H, W] uint8, 0 = transparent; None when the file has none.
        declared: the largest value that a sample can have, where the file says it; None otherwise.
        inverted: whether the least sample is white.
    """

    samples: NDArray[Any]
    alpha: NDArray[np.uint8] | None = None
    declared: int | None = None
    inverted: bool = False

    @property
    def bands(self) -> int:
        """Bands of the picture (B)."""
        return 1 if self.samples.ndim == 2 else int(self.samples.shape[2])

    @property
    def shallow(self) -> bool:
        """Whether its samples have 8 bits, and so need no range."""
        return self.samples.dtype == np.uint8

    def first(self, bands: int) -> Deep:
        """The first so many of its bands; of one the samples are [H, W]."""
        samples = self.samples.reshape(*self.samples.shape[:2], -1)[..., :bands]
        return replace(self, samples=samples[..., 0] if bands == 1 else samples)

    def ceiling(self) -> int:
        """The least 2^k - 1, from 255 on, that holds the picture; what the file declares where it does.

        Raises:
            ValueError: for pixels without a known range (floating point, integers outside 0..65535).
        """
        if self.samples.dtype.kind == "f":
            raise ValueError(f"floating-point pixels have no known range; {_HOW}")
        low, high = int(self.samples.min()), int(self.samples.max())
        if low < 0 or high > 65535:
            raise ValueError(f"pixels of {low:,} to {high:,}, outside 0..65535, have no known range; {_HOW}")
        return self.declared or max((1 << high.bit_length()) - 1, 255)

    def image(self, levels: Range) -> Image:
        """The picture with 8 bits a channel (mode L, LA, RGB or RGBA)."""
        from PIL.Image import fromarray

        pixels = to_8_bit(self.samples, levels)
        image = fromarray(255 - pixels if self.inverted else pixels)
        if self.alpha is not None:
            image.putalpha(fromarray(self.alpha))
        return image

    def unit(self, levels: Range) -> NDArray[np.float64]:
        """The samples from 0 (black, LOW) to 1 (white, HIGH), cut off beyond: [H, W, B] float64.

        Raises:
            ValueError: a sample is not a number, or there are not as many pairs as bands.
        """
        low, high = _ends(self.samples, levels)
        scaled = (self.samples.astype(np.float64) - low) * (1 / (high - low))
        if self.samples.dtype.kind == "f" and np.isnan(scaled).any():
            raise ValueError(_NAN)
        scaled = np.clip(scaled, 0, 1).reshape(*self.samples.shape[:2], self.bands)
        return 1 - scaled if self.inverted else scaled

    def outside(self, levels: Range) -> bool:
        """Whether a sample lies outside the range."""
        low, high = _ends(self.samples, levels)
        return bool((self.samples < low).any() or (self.samples > high).any())


def of_pairs(levels: Range) -> tuple[Pair, ...] | None:
    """The pairs of a range that has one for each band; None of one for all."""
    return levels if isinstance(levels[0], tuple) else None


def range_from_json(value: Any) -> Range:
    """A range as JSON has it, two numbers or a list of pairs.

    Raises:
        ValueError, TypeError: it is none.
    """
    if isinstance(value[0], list | tuple):
        return tuple((float(low), float(high)) for low, high in value)
    low, high = value
    return float(low), float(high)


def _ends(samples: NDArray[Any], levels: Range) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """LOW and HIGH, of no dimension or one number for each band, as numpy broadcasts them.

    Raises:
        ValueError: there are not as many pairs as bands.
    """
    ends = np.asarray(levels, dtype=np.float64)
    if ends.ndim == 1:
        return ends[0], ends[1]
    bands = 1 if samples.ndim == 2 else samples.shape[2]
    if len(ends) != bands:
        many = "s" if bands > 1 else ""
        raise ValueError(f"it has {bands} band{many}, and data.range is {len(ends)} pairs")
    return (ends[0, 0], ends[0, 1]) if samples.ndim == 2 else (ends[:, 0], ends[:, 1])


def to_8_bit(samples: NDArray[Any], levels: Range) -> NDArray[np.uint8]:
    """Samples of any type and shape as uint8: LOW becomes 0, HIGH 255, what lies between is rounded, the rest cut off.

    Raises:
        ValueError: a sample is not a number, or there are not as many pairs as bands.
    """
    if (pairs := of_pairs(levels)) is not None:
        _ends(samples, levels)
        bands = np.atleast_3d(samples)
        return np.stack([to_8_bit(bands[..., band], pair) for band, pair in enumerate(pairs)], -1).reshape(
            samples.shape
        )
    if (
        samples.dtype.kind == "u" and samples.dtype.itemsize == 2 and samples.size > 65536
    ):  # by a table, without eight bytes for each sample
        return np.asarray(to_8_bit(np.arange(65536, dtype=np.uint16), levels)[samples])
    low, high = _ends(samples, levels)
    scaled = (samples.astype(np.float64) - low) * (255 / (high - low))
    if samples.dtype.kind == "f" and np.isnan(scaled).any():
        raise ValueError(_NAN)
    return np.clip(np.floor(scaled + 0.5), 0, 255).astype(np.uint8)


def largest_declared(image: Image) -> int | None:
    """The largest sample that the file's header allows, where that says more than "16 bits"; before it is loaded.

    TIFF has BitsPerSample. A PGM has its largest value, which PIL has scaled to 65535 when the pixels are there.
    """
    if image.format == "TIFF":
        bits = image.tag_v2.get(258, (16,))[0]  # type: ignore[attr-defined]
        return (1 << bits) - 1 if 8 < bits < 16 else None
    if image.format == "PPM" and image.tile and image.tile[0][0] in ("ppm", "ppm_plain"):  # type: ignore[attr-defined]
        return 65535 if image.tile[0][3][-1] < 65535 else None  # type: ignore[attr-defined]
    return None


def raw_mode(image: Image) -> str:
    """How the file's samples lie in memory, in PIL's words ("RGB;16B"); before the image is loaded."""
    tiles = getattr(image, "tile", None)
    arguments = tiles[0][3] if tiles else ""
    return str(arguments if isinstance(arguments, str) else (arguments or ("",))[0])


def deep_picture(
    image: Image, stored: str, declared: int | None, again: Callable[[str], Image], bands: int = 3
) -> Deep | None:
    """The samples of a picture of more than 8 bits a channel; None for any other, and where PIL gives 8 bits only.

    PIL has no mode of 16-bit colours and keeps their upper bytes. Decoded once more as if the file had the other order
    of bytes, it keeps the lower ones.

    Args:
        image: the loaded image.
        stored: its `raw_mode`.
        declared: see `Deep`.
        again: gives the same file, loaded by another raw mode.
        bands: that are asked for; of a file with as many, 2 or 4, the last is a band and no alpha.
    """
    key = image.info.get("transparency")
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        grey = np.asarray(image)
        return Deep(grey, None if key is None else _opaque(grey != key), declared)
    if stored == _GREY_ALPHA:  # the four bytes of each pixel as they lie in the file: grey, then alpha
        parts = np.asarray(again("RGBA"), np.uint16)
        if bands == 2:
            return Deep(parts[..., ::2] << 8 | parts[..., 1::2], None, declared)
        return Deep(parts[..., 0] << 8 | parts[..., 1], to_8_bit(parts[..., 2] << 8 | parts[..., 3], FULL), declared)
    layout, _, order = stored.partition(";16")
    if layout not in ("RGB", "RGBA", "RGBa", "RGBX") or order not in _OTHER_BYTES:
        return None
    plain = "RGBA" if layout == "RGBa" else layout  # PIL would divide the upper bytes by the upper byte of alpha
    upper = image if plain == layout else again(f"{plain};16{order}")
    samples = np.asarray(upper, np.uint16) << 8 | np.asarray(again(f"{plain};16{_OTHER_BYTES[order]}"), np.uint16)
    if bands == 4 and layout == "RGBA":
        return Deep(samples, None, declared)
    colours = samples[..., :3]
    if image.mode != "RGBA":
        return Deep(colours, None if key is None else _opaque((colours != np.asarray(key)).any(axis=-1)), declared)
    alpha = samples[..., 3:]
    if layout == "RGBa":
        colours = np.minimum(colours * (65535.0 / np.maximum(alpha, 1)), 65535).round().astype(np.uint16)
    return Deep(colours, to_8_bit(alpha[..., 0], FULL), declared)


def _opaque(where: NDArray[np.bool_]) -> NDArray[np.uint8]:
    return np.where(where, 255, 0).astype(np.uint8)


def mend_key(image: Image, stored: str) -> None:
    """Scale the transparent sample of a grey PNG of 2 or 4 bits (in its `info`) as PIL scales its pixels."""
    key = image.info.get("transparency")
    if stored in _LEVELS_OF_GREY and isinstance(key, int):
        image.info["transparency"] = key * 255 // _LEVELS_OF_GREY[stored]


def flattened(image: Image, background: str) -> tuple[Image, bool]:
    """The image on its background.

    Colours are blended as stored (gamma-encoded, as browsers do): round((alpha colour + (255 - alpha) background) /
    255) exactly. An image without a transparent pixel is returned as it is.

    Args:
        image: any of 8 bits a channel: with an alpha channel, a palette with alphas, or one transparent colour.
        background: a colour, or `keep`.

    Returns:
        image: mode RGB where something was transparent and the background is a colour.
        transparent: whether a pixel was not opaque.
    """
    from PIL import Image, ImageColor

    if not image.has_transparency_data:
        return image, False
    with_alpha = (image.convert("LA") if image.mode == "La" else image).convert("RGBA")
    alpha = with_alpha.getchannel("A")
    least = alpha.getextrema()[0]
    if least == 255 or background == KEEP:
        return image, least != 255
    canvas = Image.new("RGB", image.size, ImageColor.getrgb(background)[:3])
    canvas.paste(with_alpha.convert("RGB"), mask=alpha)
    return canvas, True
