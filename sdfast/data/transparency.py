"""Put what is transparent on a background: the picture that a person sees, not the colours that lie under it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

KEEP = "keep"  # as a background: the colours under the transparency, as stored
_LEVELS_OF_GREY = {"L;2": 3, "L;4": 15}  # largest sample of a PNG's grey of fewer than 8 bits


def check_background(value: object) -> str:
    """The value, when it is `keep` or an opaque colour that PIL's ImageColor knows.

    Raises:
        ValueError: it is neither.
    """
    if not isinstance(value, str) or (value != KEEP and not _is_opaque(value)):
        raise ValueError("must be a colour (white, '#rrggbb' in quotes, 'rgb(r, g, b)') or keep")
    return value


def mend_key(image: Image, stored: str) -> None:
    """Scale the transparent sample of a grey PNG of 2 or 4 bits as PIL scales its pixels.

    Args:
        image: PIL's; its `info` is changed.
        stored: its raw mode.
    """
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


def _is_opaque(value: str) -> bool:
    from PIL import ImageColor

    try:
        colour = ImageColor.getrgb(value)
    except ValueError:
        return False
    return len(colour) == 3 and max(colour) <= 255
