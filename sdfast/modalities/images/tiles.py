"""Tiles of large pictures as rows: a view of a split, derived from how many each picture has.

Pictures are what is split, limited, compared and evaluated; tiles are what a model sees.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdfast.data.pack_checks import as_digests
from sdfast.data.parallel import available_threads, ordered_map
from sdfast.data.problem import Labels
from sdfast.data.rows import row_digest
from sdfast.modalities.images.pack import ImageSplit


class ImageTiles:
    """The tiles of the pictures of a split, each a row.

    Attributes:
        pictures: the split.
        images: [P, H, W, C] uint8, the tiles; those of a picture follow each other.
        adds_content: False, as the digest of a picture is of its tiles.
        item_of: [P] int64, ascending: which picture each tile is of.
    """

    adds_content = False

    def __init__(self, pictures: ImageSplit) -> None:
        assert pictures.tiles is not None
        self.pictures, self.images = pictures, pictures.images
        self.item_of = np.repeat(np.arange(len(pictures)), pictures.tiles)

    def __len__(self) -> int:
        return len(self.item_of)

    @property
    def labels(self) -> Labels | None:
        """That of each tile's picture, as `sdfast.data.problem` says, for P rows; None when no picture has one."""
        labels = self.pictures.labels
        return None if labels is None else labels[self.item_of]

    @functools.cached_property
    def digests(self) -> NDArray[np.uint8]:
        """[P, 32] uint8: SHA-256 of each tile's shape and bytes."""
        return as_digests(ordered_map(row_digest, self.images, available_threads()))

    def limited(self, limit: int | None, seed: int) -> NDArray[np.int64]:
        """The tiles of `limit` pictures (see `SplitFiles.limited`), int64 ascending; None gives all."""
        return np.flatnonzero(np.isin(self.item_of, self.pictures.limited(limit, seed)))


def rows_of_pictures(pictures: Any) -> Any:
    """What stages train on of a split: its tiles, or the split itself where no picture is cut.

    It is the same object whenever the split is, so that what is kept of a view (its digests) is kept.

    Args:
        pictures: the split: an `ImageSplit`, or drawn images, which stay as they are.
    """
    if not isinstance(pictures, ImageSplit) or pictures.tiles is None:
        return pictures
    if pictures.view is None:
        pictures.view = ImageTiles(pictures)
    return pictures.view
