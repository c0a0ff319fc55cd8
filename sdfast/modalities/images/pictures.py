"""How a model's pictures were made, as its folder keeps it, and single pictures made in the same way."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from sdfast.data.config import KEEP, DataConfig
from sdfast.data.items import LARGEST_FILE
from sdfast.durable import read_json
from sdfast.errors import UserError
from sdfast.modalities.images.decode import BrokenImage, ceiling, decoding, picture
from sdfast.modalities.images.levels import FULL, Range
from sdfast.modalities.images.processor import KEPT_AS, ImageProcessor
from sdfast.modalities.images.transform import Transform
from sdfast.regular import read_regular

if TYPE_CHECKING:
    from PIL.Image import Image

PROCESSOR_FILE = "preprocessor_config.json"
_KEYS = ("background", "exif_rotation", "range")
_LATER = ("resize", "tile")  # kept where something else than the default is done
_BEFORE = {"background": KEEP, "range": FULL}  # what held for models whose folder says nothing


def kept_options(options: DataConfig, levels: Range | None) -> dict[str, Any]:
    """The options (of the `data` section, the range of a pack) that turn a file into colours, as a JSON value."""
    done = options.model_copy(update={"range": levels or options.range, "resize": _resize(options)})
    later = {key for key in _LATER if getattr(done, key) is not None}
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
        kept = {key: values[key] for key in _KEYS if key in values} | {key: values.get(key) for key in _LATER}
        return DataConfig(**{**options.model_dump(), **kept})
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
        UserError: the folder is no model's or one's that was trained on tiles, or the file is no picture that can be
            used.
    """
    options, transform = _how(model)
    if transform.tile is not None:
        raise UserError(
            f"{model} was trained on tiles (data.tile), and a picture may be several; give open_tiles of the same"
            " module, and take the mean of their probabilities."
        )
    image = _opened(file, options)
    return image if transform.resize == "squash" else _images(transform, image)[0]


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
    return _images(transform, _opened(file, options))


def _how(model: str | Path) -> tuple[DataConfig, Transform]:
    """The options that a model was trained with, and what brings a picture to its size."""
    value = read_json(Path(model) / PROCESSOR_FILE)
    if not isinstance(value, dict):
        raise UserError(f"{model} has no {PROCESSOR_FILE}; give the folder of a model that sdfast has written.")
    options = options_of_model(DataConfig(), value.get(KEPT_AS))
    processor = ImageProcessor.from_json(value)
    return options, Transform(processor.height, processor.width).with_options(options)


def _opened(file: str | Path, options: DataConfig) -> Image:
    try:
        raw = read_regular(file, LARGEST_FILE)
        with decoding(options):
            top = ceiling(raw, options)[0] if options.range == "auto" else 0
            return picture(raw, options, (0.0, float(top)) if top else None).convert("RGB")
    except (OSError, BrokenImage) as error:
        reason = f"cannot be read ({error.strerror})" if isinstance(error, OSError) else str(error)
        raise UserError(f"{file}: {reason}.") from error


def _images(transform: Transform, image: Image) -> list[Image]:
    from PIL import Image as images

    rows = transform.apply(image)
    return [images.fromarray(row) for row in (rows if transform.tile is not None else rows[None])]
