"""Which patches of an image are masked: a pure function of (seed, epoch, row) on any device.

It depends on neither the batch's size, nor padding, nor the worker.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from sdfast.data.order import Batch
from sdfast.rng import STREAM_MASK, philox_bits

MaskKind = Literal["fixed", "bernoulli"]


@dataclass(frozen=True)
class PatchMask:
    """The masks of one batch.

    Attributes:
        mask: [B, L] bool, True = masked.
        visible_ids: [B, K] int64, the visible patches of each row (padded to the longest row with `bernoulli`).
        visible_valid: [B, K] bool, False at padding; None when every row has exactly K.
        masked_ids: [B, L - K] int64, the masked patches of each row; None when the rows have different numbers of them.
        whole_masked: masked patches of the whole batch, where other processes have rows of it too.
    """

    mask: Tensor
    visible_ids: Tensor
    visible_valid: Tensor | None
    masked_ids: Tensor | None = None
    whole_masked: int | None = None

    @property
    def masked_count(self) -> int:
        """Masked patches of all rows; read from the mask only where the rows have different numbers of them."""
        return int(self.mask.sum()) if self.masked_ids is None else self.masked_ids.numel()

    @property
    def whole_count(self) -> int:
        """Masked patches of the whole batch."""
        return self.masked_count if self.whole_masked is None else self.whole_masked

    def __getitem__(self, rows: slice) -> PatchMask:
        valid = None if self.visible_valid is None else self.visible_valid[rows]
        masked_ids = None if self.masked_ids is None else self.masked_ids[rows]
        return PatchMask(self.mask[rows], self.visible_ids[rows], valid, masked_ids)

    def seen_on(self, device: torch.device) -> PatchMask:
        """The masks with what tells the encoder the visible patches on a device; the rest stays where it is."""
        valid = None if self.visible_valid is None else self.visible_valid.to(device, non_blocking=True)
        return replace(self, visible_ids=self.visible_ids.to(device, non_blocking=True), visible_valid=valid)


def visible_count(patches: int, mask_ratio: float) -> int:
    """Visible patches with fixed masking: int(L (1 - ratio)), MAE's rule (49 of 196 at 0.75), but never all."""
    return min(int(patches * (1 - mask_ratio)), patches - 1)


def batch_mask(seed: int, batch: Batch, patches: int, mask_ratio: float, kind: MaskKind = "fixed") -> PatchMask:
    """The masks of this process's rows of a batch, and how many patches are masked in all of it: see `patch_mask`."""
    drawn = patch_mask(seed, batch.epoch, batch.rows, patches, mask_ratio, kind)
    if batch.whole is None:
        return drawn
    if kind == "fixed":
        return replace(drawn, whole_masked=batch.count * (patches - visible_count(patches, mask_ratio)))
    whole = patch_mask(seed, batch.epoch, batch.whole, patches, mask_ratio, kind)
    return replace(drawn, whole_masked=whole.masked_count)


def patch_mask(
    seed: int, epoch: int, rows: Tensor, patches: int, mask_ratio: float, kind: MaskKind = "fixed"
) -> PatchMask:
    """Draw the masks of some rows.

    `fixed` keeps exactly `visible_count` patches per row, a uniformly random set in random order (He et al., 2022).
    `bernoulli` masks each patch independently with probability `mask_ratio` (section 3.1 of the paper); a row never
    loses all its patches nor keeps all of them: the patch with the smallest (largest) random word stays (goes).

    Args:
        seed, epoch, rows: the address; rows is [B] int64, the result lies on its device.
        patches: L.
        mask_ratio: share of masked patches, in (0, 1).
        kind: `fixed` or `bernoulli`.
    """
    bits = philox_bits(seed, epoch, rows, patches, STREAM_MASK)
    order = torch.argsort(bits, dim=1, stable=True)
    if kind == "fixed":
        visible_ids, masked_ids = order.tensor_split([visible_count(patches, mask_ratio)], dim=1)
        mask = torch.ones(rows.shape[0], patches, dtype=torch.bool, device=rows.device)
        return PatchMask(mask.scatter_(1, visible_ids, False), visible_ids, None, masked_ids)
    mask = bits >= int((1 - mask_ratio) * 2**32)
    mask.scatter_(1, order[:, :1], False)
    mask.scatter_(1, order[:, -1:], True)
    counts = (~mask).sum(dim=1)
    longest = int(counts.max()) if rows.shape[0] else 0
    # The visible patches are the ones with the smallest words, so they lead in `order`.
    valid = torch.arange(longest, device=rows.device) < counts.unsqueeze(1)
    return PatchMask(mask, order[:, :longest], valid)
