"""Random training transforms as a pure function of an address: mirrored, or a random part brought to full size.

`crop` is what MAE pre-trains with (He et al., 2022; torchvision's RandomResizedCrop and a flip), with bilinear
interpolation. It acts on the normalised pixels on the device; since a part is never larger than the image, nothing is
reduced and no filter against aliasing is needed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sdfast.rng import STREAM_AUGMENT, philox_bits

AugmentKind = Literal["flip", "crop"]

_AREA = (0.2, 1.0)  # share of the image
_LOG_RATIO = (math.log(3 / 4), math.log(4 / 3))  # of width to height
_ATTEMPTS = 10  # at a part that lies within the image; then the largest one in the middle
_WORDS = 2 * _ATTEMPTS + 3


@dataclass(frozen=True)
class Placements:
    """What becomes of each image of a batch.

    Attributes:
        flipped: [B] bool, mirrored left to right.
        boxes: [B, 4] int64, top, left, height and width of the part in pixels; None for the whole image.
    """

    flipped: Tensor
    boxes: Tensor | None


@dataclass(frozen=True)
class Augmentation:
    """The random transform of a stage.

    Attributes:
        kind: `flip` (with probability 1/2), or `crop` (a random part, then the flip).
        seed: of the draws.
        views: 0 draws for each row and epoch anew, keyed by (seed, row, epoch). K > 0 gives each image K views that
            come again and again, keyed by (seed, content, epoch modulo K), as a bank of features needs them.
        keys: [m] int64 on the CPU, `content_keys` of the split's rows; for views alone.
    """

    kind: AugmentKind
    seed: int
    views: int = 0
    keys: Tensor | None = None

    def __call__(self, pixels: Tensor, rows: Tensor, epoch: int) -> Tensor:
        """Transform a batch.

        Args:
            pixels: [B, C, H, W] normalised, on any device.
            rows: [B] int64 on the CPU, which rows of the split they are.
            epoch: of the batch.

        Returns:
            [B, C, H, W] in the dtype of `pixels`.
        """
        keys, turn = rows, epoch
        if self.keys is not None:
            keys, turn = self.keys[rows], epoch % self.views
        return self.place(pixels, keys, turn)

    def place(self, pixels: Tensor, keys: Tensor, turns: int | Tensor) -> Tensor:
        """The same for addresses: keys [B] int64 and the epoch or view of all, or of each ([B] int64)."""
        return placed(pixels, draw_placements(self.kind, self.seed, turns, keys, *pixels.shape[-2:]))

    def to_json(self) -> dict[str, int | str]:
        """What decides the pixels besides the images."""
        return {"kind": self.kind, "seed": self.seed, "views": self.views}


def content_keys(digests: NDArray[np.uint8]) -> Tensor:
    """[n, 32] uint8 content digests -> [n] int64: their first four bytes. Equal images have equal keys."""
    return torch.from_numpy(np.ascontiguousarray(digests[:, :4]).view("<u4").reshape(-1).astype(np.int64))


def draw_placements(
    kind: AugmentKind, seed: int, epoch: int | Tensor, keys: Tensor, height: int, width: int
) -> Placements:
    """Draw the placements of some images, on the CPU, from (seed, key, epoch) alone.

    Args:
        kind: see `Augmentation`.
        seed: 63-bit.
        epoch: of all images, or [B] int64.
        keys: [B] int64 below 2**32.
        height, width: of the images in pixels.
    """
    uniform = philox_bits(seed, epoch, keys, _WORDS, STREAM_AUGMENT).double() / 2**32
    flipped = uniform[:, 0] < 0.5
    if kind == "flip":
        return Placements(flipped, None)
    place, tries = uniform[:, 1:3], uniform[:, 3:].view(-1, _ATTEMPTS, 2)
    area = height * width * (_AREA[0] + (_AREA[1] - _AREA[0]) * tries[..., 0])
    ratio = torch.exp(_LOG_RATIO[0] + (_LOG_RATIO[1] - _LOG_RATIO[0]) * tries[..., 1])
    sizes = torch.stack(((area / ratio).sqrt(), (area * ratio).sqrt()), dim=-1).round().long()
    limits = torch.tensor((height, width))
    fits = ((sizes > 0) & (sizes <= limits)).all(dim=-1)
    first = fits.int().argmax(dim=1)  # the first that fits
    size = sizes[torch.arange(len(keys)), first]
    found = fits.any(dim=1, keepdim=True)
    size = torch.where(found, size, _largest(height, width))
    corner = torch.where(found, (place * (limits - size + 1)).floor().long(), (limits - size) // 2)
    return Placements(flipped, torch.cat((corner, size), dim=1))


def placed(pixels: Tensor, placements: Placements) -> Tensor:
    """Bring each image's part to full size, bilinearly, and mirror what is flipped: [B, C, H, W] as `pixels`."""
    height, width = pixels.shape[-2:]
    if placements.boxes is None:
        flipped = placements.flipped.to(pixels.device, non_blocking=True)[:, None, None, None]
        return torch.where(flipped, pixels.flip(-1), pixels)
    top, left, part_height, part_width = placements.boxes.double().unbind(dim=1)
    down, across = _samples(top, part_height, height), _samples(left, part_width, width)
    across = torch.where(placements.flipped[:, None], across.flip(1), across)
    # From pixel numbers to grid_sample's -1 .. 1, which are the outer edges.
    y, x = (
        ((2 * samples + 1) / size - 1).to(pixels.dtype).to(pixels.device, non_blocking=True)
        for samples, size in ((down, height), (across, width))
    )
    grid = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), dim=-1)
    with torch.autocast(pixels.device.type, enabled=False):
        return F.grid_sample(pixels, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _samples(start: Tensor, length: Tensor, count: int) -> Tensor:
    """[B] start and length of a part in pixels -> [B, count] float64, where it is sampled; never outside the part."""
    centres = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    inside = centres * length[:, None] - 0.5
    return start[:, None] + inside.clamp_min(0).minimum(length[:, None] - 1)


def _largest(height: int, width: int) -> Tensor:
    """[2] int64: height and width of the largest part whose ratio is allowed."""
    narrow, wide = math.exp(_LOG_RATIO[0]), math.exp(_LOG_RATIO[1])
    ratio = width / height
    if ratio < narrow:
        return torch.tensor((round(width / narrow), width))
    return torch.tensor((height, round(height * wide)) if ratio > wide else (height, width))
