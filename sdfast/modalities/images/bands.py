"""Pictures of any number of bands, in the type of a pack's pixels, as far as PIL has no image of the kind.

Rows of 8 bits and one or three channels are PIL's work from the file on. For any other row a picture is a PIL image for
each band, of mode L (uint8) or F (the other types, not yet rounded), and what is done to a picture is done to each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sdfast.data.config import KEEP
from sdfast.modalities.images.levels import Deep, Range, to_8_bit

if TYPE_CHECKING:
    from PIL.Image import Image

WHITE = {"uint8": 255, "uint16": 65535, "float16": 1}  # what white is in a pack, by the type of its pixels
LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as PIL's convert("L")


@dataclass(frozen=True)
class Bands:
    """A picture as an image for each band, mode L or F, from 0 to what white is.

    It can be cropped and asked for its size as a PIL image can.
    """

    images: Sequence[Image]

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.images[0].size

    @property
    def width(self) -> int:
        """Width in pixels."""
        return self.size[0]

    @property
    def height(self) -> int:
        """Height in pixels."""
        return self.size[1]

    def crop(self, box: tuple[int, int, int, int]) -> Bands:
        """The part within left, top, right and bottom."""
        return Bands([image.crop(box) for image in self.images])


def to_pixels(values: NDArray[Any], pixels: str) -> NDArray[Any]:
    """Values from 0 to what white is, of any type, in the type of a pack; to integers they are rounded."""
    if pixels == "float16":
        return values.astype(np.float16)
    return np.clip(np.floor(values + 0.5), 0, WHITE[pixels]).astype(pixels) if values.dtype != pixels else values


def bands_to_keep(found: int, channels: int) -> int:
    """How many of a picture's bands a model of so many channels can see.

    All where they are as many or one (which stands for all channels); three for one channel, which is their luma; else
    the first of them.

    Raises:
        ValueError: there are too few.
    """
    if found in (1, channels) or (found == 3 and channels == 1):
        return found
    if found > channels:
        return channels
    raise ValueError(f"it has {found} bands, and the model takes {channels}; set data.channels={found}")


def bands_of_deep(deep: Deep, levels: Range, channels: int, pixels: str, background: str) -> Bands:
    """The bands of a picture of samples.

    Args:
        deep: the picture, of bands that `bands_to_keep` has left.
        levels: what becomes 0 and white.
        channels: wanted.
        pixels: type of the pack.
        background: of what is transparent, a colour, or `keep`.

    Raises:
        ValueError: a sample is not a number, or the range is of another number of bands.
    """
    if pixels == "uint8" and deep.alpha is None and deep.bands in (1, channels):
        found = np.atleast_3d(to_8_bit(deep.samples, levels))
        return _images(_matched(255 - found if deep.inverted else found, channels), pixels)
    values = deep.unit(levels)
    if deep.alpha is not None and background != KEEP and deep.alpha.min() < 255:
        from PIL import ImageColor

        under = np.asarray(ImageColor.getrgb(background)[:3]) / 255
        alpha = deep.alpha[..., None] / 255.0
        values = values * alpha + (1 - alpha) * under  # three bands of one
    return _images(_matched(values * WHITE[pixels], channels), pixels)


def bands_of_image(image: Image, channels: int, pixels: str) -> tuple[Bands, int]:
    """The bands of a PIL image of 8 bits a channel, and how many it had.

    Raises:
        ValueError: they are too few.
    """
    if channels in (1, 3):
        image = image.convert("RGB" if channels == 3 else "L")
    elif image.mode not in ("L", "LA", "RGB", "RGBA", "CMYK"):
        image = image.convert("L" if image.mode == "1" else "RGB")
    values = np.atleast_3d(np.asarray(image))
    found = values.shape[2]
    values = values[..., : bands_to_keep(found, channels)]
    if pixels != "uint8":  # 257 and 1 / 255 are exact, and nearly so
        values = values * np.float64(WHITE[pixels] / 255)
    return _images(_matched(values, channels), pixels), found


def _matched(values: NDArray[Any], channels: int) -> NDArray[Any]:
    """[H, W, B] as [H, W, channels]: the luma of three for one, one repeated, the first of more."""
    found = values.shape[2]
    if channels == 1 and found == 3:
        return np.asarray(values @ np.asarray(LUMA))[..., None]
    return values.repeat(channels, axis=2) if found == 1 else values[..., :channels]


def _images(values: NDArray[Any], pixels: str) -> Bands:
    from PIL.Image import fromarray

    kind = np.uint8 if pixels == "uint8" else np.float32
    if pixels == "uint8":
        values = to_pixels(values, pixels)
    return Bands([fromarray(np.ascontiguousarray(values[..., band], dtype=kind)) for band in range(values.shape[2])])
