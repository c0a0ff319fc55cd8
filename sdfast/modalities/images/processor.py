"""How pixels become the model's input: size, and mean and standard deviation per channel; Hugging Face's JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sdfast.errors import UserError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_IMAGENET_KINDS = ("vit_mae", "dinov2", "dinov2_with_registers", "dinov3_vit")  # as these are published
HALF = (0.5, 0.5, 0.5)
_CLIP_MEAN, _CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_BILINEAR, _BICUBIC = 2, 3  # PIL's numbers
_FILTERS = {0: "nearest-neighbour", 1: "Lanczos", _BICUBIC: "bicubic", 4: "box", 5: "Hamming"}
_FILE = "preprocessor_config.json"
KEPT_AS = "sdfast_pictures"  # in it: what transformers passes over, see `sdfast.modalities.images.pictures`


@dataclass(frozen=True)
class ImageProcessor:
    """Pixels in [0, 1], brought to height x width (bilinear), minus `mean`, over `std`.

    `mean` and `std` have one value per channel. `pictures` says how a file became 8-bit colours before that, and
    whether the aspect is kept (see `sdfast.modalities.images.pictures`), where the folder says it.
    """

    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pictures: Any = None

    @property
    def unexpressed(self) -> str | None:
        """The key of `data` that a processor of transformers cannot follow; None where it can."""
        if self._kept("tile"):
            return "tile"
        resize = self._kept("resize")
        return "resize" if resize == "pad" or (resize == "crop" and self.height != self.width) else None

    def _kept(self, key: str) -> Any:
        return self.pictures.get(key) if isinstance(self.pictures, Mapping) else None

    def to_json(self) -> dict[str, Any]:
        """The content of a `preprocessor_config.json` that `transformers.AutoImageProcessor` loads.

        It does there what `data.resize=squash` and, to a square, `crop` do. For `pad`, `crop` to another shape and
        tiles transformers has no processor: what is written squashes, and leaves an image of the model's size, as
        `open_picture` gives it, as it is.
        """
        size: dict[str, Any] = {"size": {"height": self.height, "width": self.width}}
        name = "ViTImageProcessor"
        if self._kept("resize") == "crop" and not self.unexpressed:
            name, size = "BitImageProcessor", {"size": {"shortest_edge": self.height}, "crop_size": size["size"]}
            size |= {"do_center_crop": True, "do_convert_rgb": True}
        pictures = {} if self.pictures is None else {KEPT_AS: self.pictures}  # transformers keeps what it does not know
        return {
            **pictures,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": list(self.mean),
            "image_processor_type": name,
            "image_std": list(self.std),
            "resample": _BILINEAR,
            "rescale_factor": 1 / 255,
            **size,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any], model_type: str = "vit_mae") -> ImageProcessor:
        """The processor that a `preprocessor_config.json` describes.

        What is missing is filled as the named processor class of transformers does (0.5 for ViT's, CLIP's numbers for
        BitImageProcessor). An empty `value` (no file) means ImageNet's mean and deviation for `vit_mae` and DINO's
        kinds and CLIP's for CLIP, as their published checkpoints have, and 0.5 for others. Another pixel scale than
        1/255 is folded into both.

        Raises:
            UserError: a field has a value of the wrong kind.
        """
        for key, what in (("do_flip_channel_order", "BGR"), ("rescale_offset", "from -1 to 1")):
            if value.get(key):
                raise UserError(f"{key} in {_FILE} asks for pixels {what}, and sdfast gives RGB from 0 to 1.")
        mean, std = _statistics(value, model_type)
        if value.get("do_normalize") is False:
            mean, std = (0.0,) * len(mean), (1.0,) * len(std)
        factor = value.get("rescale_factor", 1 / 255) if value.get("do_rescale", True) else 1.0
        if not isinstance(factor, int | float) or not factor > 0:
            raise UserError(f"rescale_factor in {_FILE} must be a positive number, not {factor!r}.")
        if abs(255 * factor - 1) > 1e-6:  # (255 f p - m) / s = (p - m / 255 f) / (s / 255 f)
            mean, std = tuple(m / (255 * factor) for m in mean), tuple(s / (255 * factor) for s in std)
        size = value.get("size", {"height": 224, "width": 224})
        if value.get("do_center_crop", "Bit" in _class_name(value)):
            size = value.get("crop_size", {"height": 224, "width": 224})
        height, width = _size(size)
        return cls(height, width, mean, std, value.get(KEPT_AS))

    def with_size(self, height: int, width: int) -> ImageProcessor:
        """The same normalisation at another size."""
        return replace(self, height=height, width=width)

    def with_channels(self, channels: int) -> ImageProcessor:
        """The same size for another number of channels: the values are averaged for one, and take turns for several."""
        if len(self.mean) == channels:
            return self
        if channels > 1:
            turns = range(channels)
            mean, std = (tuple(each[turn % len(each)] for turn in turns) for each in (self.mean, self.std))
            return replace(self, mean=mean, std=std)
        if len(set(self.mean)) == 1 and len(set(self.std)) == 1:  # no rounding of a mean of equal numbers
            return replace(self, mean=self.mean[:1], std=self.std[:1])
        mean, std = ((math.fsum(values) / len(values),) for values in (self.mean, self.std))
        return replace(self, mean=mean, std=std)


def replaced_steps(value: Mapping[str, Any]) -> str:
    """What the checkpoint's own preprocessing does and a direct bilinear resize does not, in words; may be empty."""
    size, own = value.get("size"), _class_name(value).startswith(("Bit", "CLIP"))  # which crop, bicubic
    resample = value.get("resample", _BICUBIC if own or _class_name(value).startswith("Siglip") else _BILINEAR)
    found = {
        "no resize": value.get("do_resize") is False,
        "a resize of the shorter edge": isinstance(size, Mapping) and "shortest_edge" in size,
        "a centre crop": value.get("do_center_crop", own) or "crop_pct" in value,
        "padding": value.get("do_pad"),
        f"{_FILTERS.get(resample, 'other') if isinstance(resample, int) else resample} interpolation": resample
        not in (None, _BILINEAR),
    }
    return ", ".join(step for step, there in found.items() if there)


def _class_name(value: Mapping[str, Any]) -> str:
    return str(value.get("image_processor_type") or value.get("feature_extractor_type") or "")


def _statistics(value: Mapping[str, Any], model_type: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    defaults: tuple[tuple[float, ...], tuple[float, ...]] = (HALF, HALF)
    if _class_name(value).startswith(("Bit", "CLIP")):
        defaults = (_CLIP_MEAN, _CLIP_STD)
    if _class_name(value).startswith("DINOv3") or (not value and model_type in _IMAGENET_KINDS):
        defaults = (IMAGENET_MEAN, IMAGENET_STD)
    if not value and model_type.startswith(("clip", "metaclip")):
        defaults = (_CLIP_MEAN, _CLIP_STD)
    mean = _numbers(value.get("image_mean"), "image_mean", defaults[0])
    std = _numbers(value.get("image_std"), "image_std", defaults[1])
    if min(std) <= 0:
        raise UserError(f"image_std in {_FILE} must be positive, not {list(std)}.")
    if len(mean) != len(std):
        raise UserError(f"image_mean and image_std in {_FILE} must have as many values as each other.")
    return mean, std


def _numbers(value: Any, key: str, default: tuple[float, ...]) -> tuple[float, ...]:
    if value is None:
        return default
    values = value if isinstance(value, list | tuple) else [value]
    if not values or not all(isinstance(number, int | float) and math.isfinite(number) for number in values):
        raise UserError(f"{key} in {_FILE} must be a list of numbers, not {value!r}.")
    return tuple(float(number) for number in values)


def _size(value: Any) -> tuple[int, int]:
    """Height and width from any way transformers has written them: a number, a pair, or named."""
    if isinstance(value, Mapping):
        edge = value.get("shortest_edge")
        value = (value.get("height", edge), value.get("width", edge))
    pair = value if isinstance(value, list | tuple) else (value, value)
    if len(pair) != 2 or not all(isinstance(number, int) and number > 0 for number in pair):
        raise UserError(f"size in {_FILE} must give a height and a width in pixels, not {value!r}.")
    return int(pair[0]), int(pair[1])
