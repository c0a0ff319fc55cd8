"""From a picture to one row: RGB or grey of 8 bits, or any bands, then a resize; by default a direct one.

That is what the released code of Lee et al. (2023) did through `ViTFeatureExtractor`: PIL's RGB conversion and a
bilinear resize to the model's size, the aspect ratio not kept. The scaling to [0, 1] and the mean and standard
deviation are recorded here and applied later, on the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sdfast.data.config import KEEP, DataConfig
from sdfast.modalities.images.bands import LUMA, WHITE, Bands, to_pixels
from sdfast.modalities.images.geometry import RESIZES, Size, aspect_factor, brought, tiles

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_PIXELS = "uint8"
_LATER = (
    "pixels",
    "resize",
    "padding",
    "tile",
)  # left out of the JSON at their defaults, so that older packs stay valid
RESAMPLE = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")


@dataclass(frozen=True)
class Transform:
    """How every image of a pack was brought to the model's shape.

    Attributes:
        height, width: size of a row in pixels.
        channels: 3 (RGB), 1 (grey, ITU-R 601 luma), or any other number of bands.
        mean, std: one number per channel, for pixels in [0, 1]; applied on the device, not here.
        resample: one of `RESAMPLE`, PIL's filters (with PIL's anti-aliasing).
        pixels: type of a row: `uint8`, `uint16` or `float16`, in which white is 255, 65535 and 1.
        resize: `squash`, `pad` or `crop`, see `sdfast.modalities.images.geometry.brought`.
        padding: red, green and blue of what `pad` puts beside an image; None otherwise.
        tile: height and width of the tiles that a larger image is cut into, in its own pixels; None cuts none.

    Raises:
        ValueError: on sizes or channels below 1, another type of pixels, or a mean or std of another length.
    """

    height: int
    width: int
    channels: int = 3
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    resample: str = "bilinear"
    pixels: str = _PIXELS
    resize: str = "squash"
    padding: tuple[int, int, int] | None = None
    tile: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ValueError(f"height and width must be at least 1, not {self.height} and {self.width}")
        if self.channels < 1:
            raise ValueError(f"channels must be at least 1, not {self.channels}")
        if self.pixels not in WHITE:
            raise ValueError(f"pixels must be one of {', '.join(WHITE)}, not {self.pixels!r}")
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError(f"mean and std need {self.channels} numbers, not {len(self.mean)} and {len(self.std)}")
        if self.resample not in RESAMPLE:
            raise ValueError(f"resample must be one of {', '.join(RESAMPLE)}, not {self.resample!r}")
        if self.resize not in RESIZES or (self.resize == "pad") != (self.padding is not None):
            raise ValueError(f"resize must be one of {', '.join(RESIZES)}, and pad needs a padding")
        if self.tile is not None and min(self.tile) < 1:
            raise ValueError(f"a tile must have at least 1 pixel, not {self.tile}")

    def with_options(self, options: DataConfig) -> Transform:
        """The same to the same size, in the way that the `data` section says.

        What `pad` puts beside an image is `data.background`; with `keep`, which is no colour, black.
        """
        from PIL import ImageColor

        resize, tile = options.resize or "squash", options.tile
        colour = "black" if options.background == KEEP else options.background
        return replace(
            self,
            pixels=options.pixels or _PIXELS,
            resize=resize,
            padding=ImageColor.getrgb(colour)[:3] if resize == "pad" else None,
            tile=(tile, tile) if isinstance(tile, int) else tile,
        )

    @property
    def row_shape(self) -> tuple[int, int, int]:
        """Shape of one row: (height, width, channels)."""
        return self.height, self.width, self.channels

    @property
    def plain(self) -> bool:
        """Whether a row is what PIL makes of an image: RGB or grey of 8 bits."""
        return self.channels in (1, 3) and self.pixels == _PIXELS

    def apply(self, image: Image | Bands) -> NDArray[Any]:
        """The row, [height, width, channels] of type `pixels`, of a PIL image of 8 bits a channel, or of bands.

        With `tile` it is the rows of the image's tiles, [k, height, width, channels]; k = 1 where it is not larger.

        Of an animation it is the current frame's. Colour conversion is PIL's (`convert("RGB")`: palettes are looked up,
        CMYK is converted, alpha is dropped).

        Raises:
            ValueError: the image has more than 8 bits a channel.
        """
        if not isinstance(image, Bands):
            if image.mode in ("I", "F") or image.mode.startswith("I;16"):
                raise ValueError(f"an image of mode {image.mode} has more than 8 bits a channel")
            image = image.convert("RGB" if self.channels == 3 else "L")
        if self.tile is None:
            return self._row(image)
        return np.stack([self._row(image.crop(box)) for box in tiles(image.size, self.tile[::-1])])

    def _row(self, image: Image | Bands) -> NDArray[Any]:
        from PIL import Image as images

        filter, size = images.Resampling[self.resample.upper()], (self.width, self.height)
        if isinstance(image, Bands):
            rows = (
                np.asarray(brought(band, size, self.resize, filter, fill))
                for band, fill in zip(image.images, self._fills(image), strict=True)
            )
            return np.stack([to_pixels(row, self.pixels) for row in rows], axis=-1)
        fill = self.padding and images.new("RGB", (1, 1), self.padding).convert(image.mode).getpixel((0, 0))
        image = brought(image, size, self.resize, filter, fill)
        return np.asarray(image, dtype=np.uint8).reshape(self.row_shape)

    def _fills(self, image: Bands) -> list[Any]:
        """What is beside each band: the colour's parts of three bands, and its luma of any other."""
        if self.padding is None:
            return [None] * len(image.images)
        luma = sum(share * part for share, part in zip(LUMA, self.padding, strict=True))
        parts = self.padding if self.channels == 3 else [luma] * self.channels
        values = [part * WHITE[self.pixels] / 255 for part in parts]
        return [round(value) for value in values] if self.pixels == "uint8" else values

    def aspect_factor(self, size: Size) -> float:
        """By how much the aspect of an image of this width and height, or of its tiles, is not a row's (from 1)."""
        if self.tile is not None:
            size = min(size[0], self.tile[1]), min(size[1], self.tile[0])
        return aspect_factor(size, (self.width, self.height))

    def to_json(self) -> dict[str, Any]:
        """The transform as a JSON value."""
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return {
            name: value for name, value in values.items() if name not in _LATER or value != getattr(Transform, name)
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Transform:
        """The transform that `to_json` described."""
        return cls(
            height=int(value["height"]),
            width=int(value["width"]),
            channels=int(value["channels"]),
            mean=tuple(value["mean"]),
            std=tuple(value["std"]),
            resample=str(value["resample"]),
            pixels=str(value.get("pixels", _PIXELS)),
            resize=str(value.get("resize", "squash")),
            padding=tuple(value["padding"]) if "padding" in value else None,
            tile=tuple(value["tile"]) if "tile" in value else None,
        )
