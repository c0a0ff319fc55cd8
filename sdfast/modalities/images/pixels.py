"""Pictures as numbers for a linear classifier: what they say without a model."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sdfast.modalities.images.bands import WHITE
from sdfast.modalities.images.pack import ImageSplit

SIDE = 32  # pixels, of the longer side
_ROWS = 128  # at a time


class RawPixels:
    """Small pictures, pixel by pixel: all channels, or one of those that are the same in every row of train."""

    def __init__(self, train: ImageSplit, rows: Tensor) -> None:
        """train, rows: [n] int64, pictures that tell whether the channels differ."""
        self.channels = train.images.shape[-1]
        same = (_same_channels(train.images[some.numpy()]) for some in rows.split(_ROWS))
        if self.channels > 1 and all(same):
            self.channels = 1

    def __call__(self, split: ImageSplit, rows: Tensor) -> Tensor:
        """[n, D] float32, 0 black and 1 white: pictures reduced with antialiasing to `SIDE` where they are larger.

        Args:
            split: that they are in.
            rows: [n] int64.
        """
        parts = [self._read(split.images[some.numpy()]) for some in rows.split(_ROWS)]
        return torch.cat(parts)

    def _read(self, images: np.ndarray) -> Tensor:
        """[B, H, W, C] of a pack -> [B, D]."""
        pictures = torch.from_numpy(images[..., : self.channels].astype(np.float32) / WHITE.get(images.dtype.name, 255))
        pictures = pictures.permute(0, 3, 1, 2)
        height, width = pictures.shape[2:]
        if (longer := max(height, width)) > SIDE:
            size = [max(1, round(side * SIDE / longer)) for side in (height, width)]
            pictures = F.interpolate(pictures, size, mode="bilinear", antialias=True)
        return pictures.flatten(1)


def _same_channels(images: np.ndarray) -> bool:
    return bool((images == images[..., :1]).all())
