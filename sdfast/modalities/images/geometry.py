"""How a picture of any size comes to that of a row: squashed, padded or cropped, whole or in tiles; sizes alone.

Sizes and places are in pixels, widths before heights, as in PIL.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image, Resampling

Size = tuple[int, int]
RESIZES = ("squash", "pad", "crop")
_LARGEST = 1 << 26  # pixels of a picture that is resized before it is cropped


def brought(image: Image, size: Size, resize: str, resample: Resampling, fill: Any = 0) -> Image:
    """The image at a size, in its own mode.

    Args:
        image: of any size.
        size: wanted.
        resize: `squash` does not keep the aspect. `pad` does, and puts the image in the middle of a canvas, an odd
            pixel to the right of it and below. `crop` does, and takes the middle of an image of which the side that is
            shorter in proportion fits; with a square size these are the numbers of transformers' `shortest_edge` and
            centre crop.
        resample: PIL's filter.
        fill: colour of the canvas, in the image's mode.
    """
    from PIL import Image as images

    if image.size == size:
        return image
    if resize == "squash":
        return image.resize(size, resample)
    if resize == "pad":
        inner = inside(image.size, size)
        part = image if image.size == inner else image.resize(inner, resample)
        if inner == size:
            return part
        canvas = images.new(image.mode, size, fill)
        canvas.paste(part, ((size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2))
        return canvas
    outer = around(image.size, size)
    left, top = (outer[0] - size[0]) // 2, (outer[1] - size[1]) // 2
    if outer[0] * outer[1] > _LARGEST:  # a strip, of which most would be resized to be thrown away
        across, down = image.width / outer[0], image.height / outer[1]
        box = (left * across, top * down, (left + size[0]) * across, (top + size[1]) * down)
        return image.resize(size, resample, box=box)
    whole = image if image.size == outer else image.resize(outer, resample)
    return whole.crop((left, top, left + size[0], top + size[1]))


def inside(size: Size, target: Size) -> Size:
    """The largest size of this aspect that fits into the target: one side is the target's, the other is rounded."""
    (width, height), (wide, high) = size, target
    if width * high >= height * wide:
        return wide, max(1, (2 * height * wide + width) // (2 * width))
    return max(1, (2 * width * high + height) // (2 * height)), high


def around(size: Size, target: Size) -> Size:
    """The smallest size of this aspect that covers the target: one side is the target's, the other is rounded down."""
    (width, height), (wide, high) = size, target
    if width * high >= height * wide:
        return width * high // height, high
    return wide, height * wide // width


def tiles(size: Size, tile: Size) -> list[tuple[int, int, int, int]]:
    """Where a picture is cut: left, top, right and bottom of each tile, row by row.

    A side that is not longer than the tile's is not cut. Of a longer one there are as few tiles as cover it, each of
    the tile's full length; the first begins at the beginning, the last ends at the end, and those between them are as
    evenly spread as whole pixels allow, so that neighbours overlap by as much as is left over.
    """
    across, down = (_starts(whole, part) for whole, part in zip(size, tile, strict=True))
    width, height = (min(whole, part) for whole, part in zip(size, tile, strict=True))
    return [(left, top, left + width, top + height) for top, left in product(down, across)]


def _starts(whole: int, part: int) -> list[int]:
    count = -(-whole // part)
    if count <= 1:
        return [0]
    return [(2 * number * (whole - part) + count - 1) // (2 * (count - 1)) for number in range(count)]


def aspect_factor(size: Size, target: Size) -> float:
    """By how much the aspect of a size is not the target's, from 1: what squashing one to the other does to it.

    With `crop` a share of 1 - 1 / factor of the picture is left out, with `pad` as much of the row is padding.
    """
    ratio = size[0] * target[1] / (size[1] * target[0])
    return max(ratio, 1 / ratio)
