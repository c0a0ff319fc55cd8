"""Images that nearly equal another: the same picture in another size, compression, brightness or contrast.

Candidates are found by perceptual hashes, 63 bits of an image's lowest frequencies (whether each is above their
median), of which few differ. They are compared by thumbnails of 16 x 16 pixels, whose correlation tells, as it knows
neither brightness nor contrast. Images of nearly one colour have no hash: what is left of them is noise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from sdfast.data.near import pairs_with_equal_keys
from sdfast.data.parallel import ordered_map

ALIKE = 0.995  # correlation of thumbnails from which on images nearly equal each other
_COARSELY = 0.98  # of the smaller thumbnails, which are kept of all
_BITS = 8  # of the hash that may differ
_FLAT = 4.0 / 255  # standard deviation of a thumbnail, as a share of the range of its values, below which it is flat
_CELLS, _WAVES = 32, 8  # in each direction: cells to which an image is brought, frequencies of the hash
_SIDE, _SMALL = 16, 8  # of thumbnails
_TOGETHER = 2  # bytes of the hash that make a key: two hashes that differ in up to 6 bits have two bytes in common
_BLOCK = 1 << 22  # numbers of images at a time
_CLOSEST = 4  # candidates of an image whose thumbnails are compared
_BYTE_BITS = np.array([bin(byte).count("1") for byte in range(256)], np.uint8)


@dataclass(frozen=True)
class Hashes:
    """What is kept of some images to find those that are alike.

    Attributes:
        images: [n, H, W, C], of which they are.
        rows: [k] int64, those that are not flat.
        bits: [k, 8] uint8, their hashes.
        small: [k, 8 * 8 * C] float16, their smaller thumbnails, of mean 0 and length 1.
        items: [n] int64, of which picture each image is a tile; None where each is a picture.
    """

    images: NDArray[np.generic]
    rows: NDArray[np.int64]
    bits: NDArray[np.uint8]
    small: NDArray[np.float16]
    items: NDArray[np.int64] | None = None


def hashes(images: NDArray[np.generic], threads: int = 1) -> Hashes:
    """The hashes of images, [n, H, W, C], read a few at a time."""
    size = max(_BLOCK // max(int(np.prod(images.shape[1:])), 1), 1)
    blocks = [range(at, min(at + size, len(images))) for at in range(0, len(images), size)]
    parts = list(ordered_map(partial(_block, images), blocks or [range(0)], threads))
    return Hashes(images, *(np.concatenate(each) for each in zip(*parts, strict=True)))


def _block(
    images: NDArray[np.generic], block: range
) -> tuple[NDArray[np.int64], NDArray[np.uint8], NDArray[np.float16]]:
    cells = _reduced(images[block.start : block.stop], _CELLS)
    small, spread = _thumbnails(cells, _SMALL)
    rows = np.flatnonzero(spread >= _FLAT * _range_of(images.dtype, cells))
    high, wide = (_waves(side) for side in cells.shape[2:])
    waves = (high @ cells[rows].mean(axis=1) @ wide.T).reshape(len(rows), len(high) * len(wide))[:, 1:]  # no mean
    above = waves > np.median(waves, axis=1, keepdims=True) if waves.size else waves > 0
    bits = np.packbits(np.pad(above, ((0, 0), (0, 64 - above.shape[1]))), axis=1)
    return rows + block.start, bits, small[rows].astype(np.float16)


def _reduced(images: NDArray[np.generic], side: int) -> NDArray[np.float32]:
    """[n, H, W, C] of any type -> [n, C, h, w] float32: the means of at most so many cells in each direction."""
    count, height, width, channels = images.shape
    lines = images.astype(np.float32)
    if height > side:
        lines = (_cells(height, side) @ lines.reshape(count, height, width * channels)).reshape(
            count, side, width, channels
        )
    planes = np.ascontiguousarray(np.moveaxis(lines, 3, 1))
    return planes @ _cells(width, side).T if width > side else planes


def _range_of(dtype: np.dtype[np.generic], values: NDArray[np.float32]) -> float:
    """From the least to the largest value that there may be; of floats, that there are."""
    if dtype.kind in "iu":
        return float(2 ** (8 * dtype.itemsize) - 1)
    return float(np.ptp(values)) if values.size else 1.0


def _waves(side: int) -> NDArray[np.float32]:
    """[8, side]: the lowest cosines of the discrete cosine transform."""
    places = np.arange(side)
    return np.cos(np.pi / side * (places + 0.5) * np.arange(min(_WAVES, side))[:, None]).astype(np.float32)


def _thumbnails(cells: NDArray[np.float32], side: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Means over a grid, of mean 0 and length 1 over all channels, [n, m] float32; and their standard deviations."""
    high, wide = (_cells(length, min(side, length)) for length in cells.shape[2:])
    small = (high @ cells @ wide.T).reshape(len(cells), cells.shape[1] * len(high) * len(wide))
    small -= small.mean(axis=1, keepdims=True)
    length = np.linalg.norm(small, axis=1, keepdims=True)
    return small / np.maximum(length, 1e-12), length[:, 0] / np.sqrt(small.shape[1])


def _cells(length: int, count: int) -> NDArray[np.float32]:
    """[count, length]: which share of each of so many equal cells each pixel of a line is."""
    edges, places = np.arange(count + 1) * (length / count), np.arange(length)
    inside = np.minimum(edges[1:, None], places + 1) - np.maximum(edges[:-1, None], places)
    return (np.maximum(inside, 0) * (count / length)).astype(np.float32)


def nearest(one: Hashes, other: Hashes) -> list[tuple[int, int]]:
    """Pairs (row of one, row of the other) of images that are alike: the most alike of each row of the other.

    Of tiles they are pairs of pictures, for each of the other the first of which a tile is like one of its own.
    """
    found: list[tuple[int, int]] = []
    for theirs, ours in _candidates(one, other):
        rows, others = one.rows[ours], other.rows[theirs]
        thumbnails = (
            _thumbnails(_reduced(each.images[at], _CELLS), _SIDE)[0] for each, at in ((one, rows), (other, others))
        )
        alike = np.einsum("ij,ij->i", *thumbnails)
        for row in np.unique(others[alike >= ALIKE]).tolist():
            own = np.flatnonzero(others == row)
            found.append((int(rows[own[np.argmax(alike[own])]]), row))
    found.sort(key=lambda pair: pair[1])
    if one.items is None or other.items is None:
        return found
    pictures: dict[int, int] = {}
    for row, at in found:
        pictures.setdefault(int(other.items[at]), int(one.items[row]))
    return [(row, at) for at, row in pictures.items()]


def _candidates(one: Hashes, other: Hashes) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Places in the other and in one whose images may be alike, all of a place of the other in one block."""
    kept = [np.zeros((3, 0), np.int64)]
    for which in combinations(range(8), _TOGETHER):
        keys = (each.bits[:, which].astype(np.uint64) @ np.array([256, 1], np.uint64) for each in (one, other))
        for ours, theirs in pairs_with_equal_keys(*keys):
            far = _BYTE_BITS[one.bits[ours] ^ other.bits[theirs]].sum(axis=1, dtype=np.int64)
            near = np.flatnonzero(far <= _BITS)
            ours, theirs, far = ours[near], theirs[near], far[near]
            like = np.einsum("ij,ij->i", one.small[ours], other.small[theirs], dtype=np.float32) >= _COARSELY
            kept.append(np.stack((theirs[like], far[like], ours[like])))
        kept = [np.unique(np.concatenate(kept, axis=1), axis=1)]  # by place of the other, the fewest bits first
    theirs, _, ours = kept[0]
    starts = np.flatnonzero(np.diff(theirs, prepend=-1))
    sizes = np.diff(np.append(starts, len(theirs)))
    rank = np.arange(len(theirs)) - np.repeat(starts, sizes)
    theirs, ours = theirs[rank < _CLOSEST], ours[rank < _CLOSEST]
    size = max(_BLOCK // max(int(np.prod(one.images.shape[1:])), 1), _CLOSEST)
    at = 0
    while at < len(theirs):
        until = min(at + size, len(theirs))
        while at + 1 < until < len(theirs) and theirs[until] == theirs[until - 1] and theirs[at] != theirs[until]:
            until -= 1
        yield theirs[at:until], ours[at:until]
        at = until
