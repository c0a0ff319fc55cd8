"""Which patches of an image or tokens of a text are masked: a pure function of (seed, epoch, row) on any device.

It depends on neither the batch's size, nor padding, nor the worker. Tokens follow the rule of transformers'
`DataCollatorForLanguageModeling` (BERT's): each that is not special is chosen independently with probability `rate`, so
a text may have none; of the chosen, 80 % become the mask token, 10 % a random word of the vocabulary (any, special ones
included) and 10 % stay.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from sdfast.data.order import Batch
from sdfast.data.text_batch import TokenBatch, TokenReader, tokens_of
from sdfast.errors import UserError
from sdfast.rng import STREAM_MASK, STREAM_TOKEN, philox_bits, philox_words

MaskKind = Literal["fixed", "bernoulli"]

_MASKED, _MASKED_OR_RANDOM = 0.8, 0.9
_WORDS = 2**32


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


@dataclass(frozen=True)
class TokenMasking:
    """How tokens are masked.

    Attributes:
        mask_id: id of the mask token.
        vocabulary: words to draw random ones from: ids 0 to `vocabulary` - 1.
        special_ids: ids that are never chosen.
        rate: probability of each other token to be chosen, in (0, 1].
        mask_only: every chosen token becomes the mask token.
    """

    mask_id: int
    vocabulary: int
    special_ids: tuple[int, ...]
    rate: float = 0.15
    mask_only: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise UserError(f"the share of masked tokens must be above 0 and at most 1, not {self.rate:g}.")


@dataclass(frozen=True, eq=False)
class TokenMask:
    """The masks of one batch.

    Attributes:
        batch: what the model sees: the sequences with chosen tokens replaced.
        chosen: [M] int64 on the CPU, the chosen tokens' places in `batch.ids`, ascending.
        labels: [M] int64 on the device of the ids, what they were.
        counts: [B] int64 on the CPU, chosen tokens of each sequence.
        whole_chosen: chosen tokens of the whole batch, where other processes have sequences of it too.
    """

    batch: TokenBatch
    chosen: Tensor
    labels: Tensor
    counts: Tensor
    whole_chosen: int | None = None

    @property
    def whole_count(self) -> int:
        """Chosen tokens of the whole batch."""
        return len(self.chosen) if self.whole_chosen is None else self.whole_chosen

    def __getitem__(self, rows: slice) -> TokenMask:
        """The masks of some consecutive sequences."""
        some, tokens = tokens_of(self.counts, rows), tokens_of(self.batch.lengths, rows)
        return TokenMask(self.batch[rows], self.chosen[some] - tokens.start, self.labels[some], self.counts[rows])

    def seen_on(self, device: torch.device) -> TokenMask:
        """The masks with what the encoder sees of the texts on a device; the rest stays where it is."""
        return replace(self, batch=self.batch.to(device))


def batch_token_mask(seed: int, batch: Batch, read: TokenReader, masking: TokenMasking) -> TokenMask:
    """The masks of this process's rows of a batch, and how many tokens are chosen in all of it: see `token_mask`."""
    drawn = token_mask(seed, batch.epoch, batch.rows, TokenBatch(*read(batch.rows)), masking)
    if batch.whole is None:
        return drawn
    whole = token_mask(seed, batch.epoch, batch.whole, TokenBatch(*read(batch.whole)), masking)
    return replace(drawn, whole_chosen=len(whole.chosen))


def token_mask(seed: int, epoch: int, rows: Tensor, batch: TokenBatch, masking: TokenMasking) -> TokenMask:
    """Draw the masks of some rows.

    Args:
        seed, epoch, rows: the address; rows is [B] int64 on the CPU.
        batch: the tokens of those rows; the choice is made on the CPU, so ids that lie there cost no wait.
        masking: the rule.
    """
    ids = batch.ids.cpu()
    row_of = torch.repeat_interleave(torch.arange(len(rows)), batch.lengths)  # [T]
    words = philox_words(seed, epoch, rows[row_of], batch.places, STREAM_TOKEN)
    special = torch.isin(ids, torch.tensor(masking.special_ids, dtype=torch.int64))
    chosen = ((words[:, 0] < int(masking.rate * _WORDS)) & ~special).nonzero()[:, 0]
    labels, how = ids[chosen], words[chosen]
    seen = torch.full_like(labels, masking.mask_id)
    if not masking.mask_only:
        random = how[:, 2] * masking.vocabulary >> 32
        seen = torch.where(how[:, 1] < int(_MASKED_OR_RANDOM * _WORDS), random, labels)
        seen = torch.where(how[:, 1] < int(_MASKED * _WORDS), masking.mask_id, seen)
    device = batch.ids.device
    replaced = TokenBatch(ids.index_copy(0, chosen, seen), batch.lengths).to(device)
    counts = torch.bincount(row_of[chosen], minlength=len(rows))
    return TokenMask(replaced, chosen, labels.to(device, non_blocking=True), counts)
