"""From an image of 8 bits a channel to one uint8 row: RGB or grey, then a direct resize (fidelity: no crop).

This is what the released code of Lee et al. (2023) did through `ViTFeatureExtractor`: PIL's RGB conversion and a
bilinear resize to the model's size, the aspect ratio not kept. The scaling by 1/255 and the mean and standard deviation
are recorded here and applied later, on the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
RESAMPLE = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")


@dataclass(frozen=True)
class Transform:
    """How every image of a pack was brought to the model's shape.

    Attributes:
        height, width: size of a row in pixels.
        channels: 3 (RGB) or 1 (grey, ITU-R 601 luma).
        mean, std: one number per channel, for pixels in [0, 1]; applied on the device, not here.
        resample: one of `RESAMPLE`, PIL's filters (with PIL's anti-aliasing).

    Raises:
        ValueError: on sizes below 1, other channel counts, or a mean or std of another length.
    """

    height: int
    width: int
    channels: int = 3
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    resample: str = "bilinear"

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise ValueError(f"height and width must be at least 1, not {self.height} and {self.width}")
        if self.channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, not {self.channels}")
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError(f"mean and std need {self.channels} numbers, not {len(self.mean)} and {len(self.std)}")
        if self.resample not in RESAMPLE:
            raise ValueError(f"resample must be one of {', '.join(RESAMPLE)}, not {self.resample!r}")

    @property
    def row_shape(self) -> tuple[int, int, int]:
        """Shape of one row: (height, width, channels)."""
        return self.height, self.width, self.channels

    def apply(self, image: Image) -> NDArray[np.uint8]:
        """The row, [height, width, channels] uint8, of a PIL image of 8 bits a channel.

        Of an animation it is the current frame's. Colour conversion is PIL's (`convert("RGB")`: palettes are looked up,
        CMYK is converted, alpha is dropped).

        Raises:
            ValueError: the image has more than 8 bits a channel.
        """
        from PIL.Image import Resampling

        if image.mode in ("I", "F") or image.mode.startswith("I;16"):
            raise ValueError(f"an image of mode {image.mode} has more than 8 bits a channel")
        image = image.convert("RGB" if self.channels == 3 else "L")
        if image.size != (self.width, self.height):
            image = image.resize((self.width, self.height), Resampling[self.resample.upper()])
        return np.asarray(image, dtype=np.uint8).reshape(self.row_shape)

    def to_json(self) -> dict[str, Any]:
        """The transform as a JSON value."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

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
        )
