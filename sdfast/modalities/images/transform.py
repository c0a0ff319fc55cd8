"""From a picture to one row: RGB or grey of 8 bits, or any bands, then a direct resize (fidelity: no crop).

This is what the released code of Lee et al. (2023) did through `ViTFeatureExtractor`: PIL's RGB conversion and a
bilinear resize to the model's size, the aspect ratio not kept. The scaling to [0, 1] and the mean and standard
deviation are recorded here and applied later, on the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sdfast.modalities.images.bands import WHITE, Bands, to_pixels

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_PIXELS = "uint8"  # left out of the JSON, so that older packs stay valid
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

        Of an animation it is the current frame's. Colour conversion is PIL's (`convert("RGB")`: palettes are looked up,
        CMYK is converted, alpha is dropped).

        Raises:
            ValueError: the image has more than 8 bits a channel.
        """
        if isinstance(image, Bands):
            return np.stack([to_pixels(np.asarray(self._resized(band)), self.pixels) for band in image.images], -1)
        if image.mode in ("I", "F") or image.mode.startswith("I;16"):
            raise ValueError(f"an image of mode {image.mode} has more than 8 bits a channel")
        image = self._resized(image.convert("RGB" if self.channels == 3 else "L"))
        return np.asarray(image, dtype=np.uint8).reshape(self.row_shape)

    def _resized(self, image: Image) -> Image:
        from PIL.Image import Resampling

        if image.size == (self.width, self.height):
            return image
        return image.resize((self.width, self.height), Resampling[self.resample.upper()])

    def to_json(self) -> dict[str, Any]:
        """The transform as a JSON value."""
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return {name: value for name, value in values.items() if (name, value) != ("pixels", _PIXELS)}

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
        )
