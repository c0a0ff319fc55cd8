"""How a model's pictures were made, as its folder keeps it, and single pictures made in the same way."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from sdfast.data.config import KEEP, DataConfig
from sdfast.data.items import LARGEST_FILE, Item, Source, known_items
from sdfast.durable import read_json
from sdfast.errors import UserError
from sdfast.modalities.images.decode import BrokenImage, decode, decoding, picture, samples
from sdfast.modalities.images.levels import FULL, Range
from sdfast.modalities.images.pack import common_range
from sdfast.modalities.images.processor import HALF, KEPT_AS, ImageProcessor
from sdfast.modalities.images.transform import Transform
from sdfast.regular import read_regular

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

PROCESSOR_FILE = "preprocessor_config.json"
_KEYS = ("background", "exif_rotation", "range")
_LATER_KEYS = ("pixels", "nan", "resize", "tile")  # kept where something else than the usual is done
_PLAIN = {"pixels": "uint8"}
_BEFORE = {"background": KEEP, "range": FULL}  # what held for models whose folder says nothing


def kept_options(options: DataConfig, levels: Range | None, pixels: str = "uint8") -> dict[str, Any]:
    """The options that turn a file into colours, as a JSON value: of the `data` section, and what a pack has of them.

    Args:
        options: the `data` section.
        levels: the range of the pack.
        pixels: its type.
    """
    found = {"range": levels or options.range, "pixels": pixels}
    done = options.model_copy(update={**found, "resize": _resize(options)})
    later = {key for key in _LATER_KEYS if getattr(done, key) != _PLAIN.get(key)}
    return done.model_dump(mode="json", include={*_KEYS, *later})


def _resize(options: DataConfig) -> str | None:
    """None for what is done when nothing is given."""
    return None if options.resize == "squash" else options.resize


def options_of_model(options: DataConfig, kept: Any) -> DataConfig:
    """`options` with those that a model was trained with.

    Args:
        options: the `data` section.
        kept: what `kept_options` gave; None of a model that was written before this was kept, whose transparent
            pixels have the colours that are stored under them, and whose 16-bit images the range 0 to 65,535.

    Raises:
        UserError: `kept` is something else.
    """
    values = _BEFORE if kept is None else kept
    try:
        if not isinstance(values, Mapping):
            raise TypeError
        plain = {key: _PLAIN.get(key) for key in _LATER_KEYS}
        known = {key: values[key] for key in (*_KEYS, *_LATER_KEYS) if key in values}
        return DataConfig(**{**options.model_dump(), **plain, **known})
    except (TypeError, ValidationError) as error:
        raise UserError(
            f"{KEPT_AS} in the model's {PROCESSOR_FILE} does not describe pictures as sdfast writes it; copy the model "
            "again, or remove the entry."
        ) from error


def open_picture(file: str | Path, model: str | Path) -> Image:
    """A picture as `sdfast eval` sees it before it is resized, for `transformers.pipeline` and other programs.

    It is upright, its transparent pixels lie on the background that the model was trained with, and samples of more
    than 8 bits are stretched by the range that the model was trained with (one that was not trained with any: by the
    picture's own, as `data.range=auto` does for a source of this picture alone). Where the model was trained with
    `data.resize=pad` or `crop` it has the model's size already, so that no processor changes it.

    Args:
        file: of the picture.
        model: folder of a model that sdfast has written.

    Returns:
        PIL image, 8 bits a channel, mode RGB.

    Raises:
        UserError: the folder is no model's, or one's of other channels or that was trained on tiles; or the file is no
            picture that can be used.
    """
    options, transform = _how(model)
    if transform.tile is not None:
        raise UserError(
            f"{model} was trained on tiles (data.tile), and a picture may be several; give open_tiles of the same"
            " module, and take the mean of their probabilities."
        )
    image = _colours(file, model, options, transform)
    return image if transform.resize == "squash" else _images(transform, image)[0]


def open_pixels(file: str | Path, model: str | Path) -> Tensor:
    """A picture as the input of a model, as `sdfast eval` sees it: of any number of channels and type of pixels.

    It is read and stretched as for `open_picture`, brought to the model's size, and normalised.

    Args:
        file: of the picture.
        model: folder of a model that sdfast has written.

    Returns:
        [1, C, H, W] float32: `pixel_values` of a model of transformers; of one that was trained on tiles [k, C, H, W].

    Raises:
        UserError: the folder is no model's, or the file is no picture that can be used.
    """
    import torch

    from sdfast.modalities.images.reader import Normalise

    options, transform = _how(model)
    with _opened(file, options, transform) as (raw, levels):
        row, _ = decode(raw, transform, options, levels=levels)
    rows = row if transform.tile is not None else row[None]
    return Normalise(transform.mean, transform.std)(torch.from_numpy(rows.copy()))


def open_tiles(file: str | Path, model: str | Path) -> list[Image]:
    """The tiles of a picture as `sdfast eval` sees them, for a model that was trained with `data.tile`.

    `eval` takes the mean of their probabilities. Of a picture that is not larger than a tile, and for a model that was
    trained on whole pictures, there is one.

    Args:
        file: of the picture.
        model: folder of a model that sdfast has written.

    Returns:
        PIL images of the model's size, 8 bits a channel, mode RGB.

    Raises:
        UserError: the folder is no model's, or the file is no picture that can be used.
    """
    options, transform = _how(model)
    return _images(transform, _colours(file, model, options, transform))


def _how(model: str | Path) -> tuple[DataConfig, Transform]:
    """The options that a model was trained with, and what brings a picture to its input."""
    value = read_json(Path(model) / PROCESSOR_FILE)
    if not isinstance(value, dict):
        raise UserError(f"{model} has no {PROCESSOR_FILE}; give the folder of a model that sdfast has written.")
    options = options_of_model(DataConfig(), value.get(KEPT_AS))
    processor = ImageProcessor.from_json(value)
    mean, std = processor.mean, processor.std
    whole = Transform(processor.height, processor.width, len(mean), mean, std)
    return options, whole.with_options(options)


def _colours(file: str | Path, model: str | Path, options: DataConfig, transform: Transform) -> Image:
    """A picture of 8-bit colours before it is resized."""
    if transform.channels not in (1, 3):
        raise UserError(
            f"{model} takes {transform.channels} channels, and PIL has no such picture; give open_pixels of the same"
            " module, which gives the model's input."
        )
    with _opened(file, options, transform) as (raw, levels):
        return picture(raw, options, levels).convert("RGB")


@contextlib.contextmanager
def _opened(file: str | Path, options: DataConfig, transform: Transform) -> Iterator[tuple[bytes, Range | None]]:
    """A file's bytes and the range of its picture, where it needs one that the options do not say.

    Raises:
        UserError: it is no picture that can be used; whatever is done with it may raise BrokenImage.
    """
    try:
        raw = read_regular(file, LARGEST_FILE)
        with decoding(options):
            alone = Source(str(file), "file", None, {"train": known_items([Item(str(file), None, lambda: raw)])})
            looked_for = isinstance(options.range, str) and samples(raw, options, transform) is not None
            yield raw, common_range(alone, options, transform, 1).levels if looked_for else None
    except (OSError, BrokenImage) as error:
        reason = f"cannot be read ({error.strerror})" if isinstance(error, OSError) else str(error)
        raise UserError(f"{file}: {reason}.") from error


def _images(transform: Transform, image: Image) -> list[Image]:
    from PIL import Image as images

    rows = replace(transform, channels=3, mean=HALF, std=HALF, pixels="uint8").apply(image)
    return [images.fromarray(row) for row in (rows if transform.tile is not None else rows[None])]
