"""Tiles of large pictures as rows: a view of a split, derived from how many each picture has, and their vote.

Pictures are what is split, limited, compared and evaluated; tiles are what a model sees.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sdfast.data.pack_checks import as_digests
from sdfast.data.parallel import available_threads, ordered_map
from sdfast.data.rows import row_digest
from sdfast.modalities.images.pack import ImageSplit


class ImageTiles:
    """The tiles of the pictures of a split, each a row.

    Attributes:
        pictures: the split.
        images: [P, H, W, C] uint8, the tiles; those of a picture follow each other.
        picture: [P] int64: which picture each tile is of.
    """

    def __init__(self, pictures: ImageSplit) -> None:
        assert pictures.tiles is not None
        self.pictures, self.images = pictures, pictures.images
        self.picture = np.repeat(np.arange(len(pictures)), pictures.tiles)
        self._first = np.cumsum(pictures.tiles) - pictures.tiles

    def __len__(self) -> int:
        return len(self.picture)

    @property
    def labels(self) -> NDArray[Any] | None:
        """[P] int64 (or as the split's): the label of each tile's picture; None when no picture has one."""
        labels = self.pictures.labels
        return None if labels is None else labels[self.picture]

    @functools.cached_property
    def digests(self) -> NDArray[np.uint8]:
        """[P, 32] uint8: SHA-256 of each tile's shape and bytes."""
        return as_digests(ordered_map(row_digest, self.images, available_threads()))

    def limited(self, limit: int | None, seed: int) -> NDArray[np.int64]:
        """The tiles of `limit` pictures (see `SplitFiles.limited`), int64 ascending; None gives all."""
        return np.flatnonzero(np.isin(self.picture, self.pictures.limited(limit, seed)))

    def of(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """The tiles of some pictures, [n] int64.

        Returns:
            rows: [T] int64, one picture's after the other's.
            counts: [n] int64, how many each has.
        """
        chosen = pictures.numpy()
        assert self.pictures.tiles is not None
        counts = self.pictures.tiles[chosen]
        place = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return torch.from_numpy(np.repeat(self._first[chosen], counts) + place), torch.from_numpy(counts)


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


def voted(logits: Tensor, counts: Tensor, labels: NDArray[Any] | None = None) -> Tensor:
    """What pictures' tiles say together, as logits: [n, classes] in the dtype of `logits`.

    Where a row has one class (signed integers, or no labels) these are the logarithms of the mean of the tiles'
    probabilities; where it has several (unsigned, a column a class), the log-odds of the mean of each class's
    probability; and of numbers (floating point) the mean. So metrics, losses and predictions are of pictures.

    Args:
        logits: [T, classes], of the tiles of one picture after the other's.
        counts: [n] int64, tiles of each picture, at least 1.
        labels: of the split, of which the type says what a label is.
    """
    kind = "i" if labels is None else labels.dtype.kind
    parts = logits.double().split(counts.tolist())
    if kind == "f":
        means: list[Tensor] = [part.mean(dim=0) for part in parts]
    elif kind == "u":
        means = [_log_mean(F.logsigmoid(part)) - _log_mean(F.logsigmoid(-part)) for part in parts]
    else:
        means = [_log_mean(part.log_softmax(dim=1)) for part in parts]
    return torch.stack(means).to(logits.dtype) if means else logits[:0]


def _log_mean(logs: Tensor) -> Tensor:
    """The logarithm of the mean of numbers that are given by their logarithms, over the rows."""
    return logs.logsumexp(dim=0) - math.log(len(logs))
