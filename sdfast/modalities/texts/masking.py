"""Which tokens of a text are masked: a pure function of (seed, epoch, row) on any device.

It depends on neither the batch's size, nor padding, nor the worker. The rule is that of transformers'
`DataCollatorForLanguageModeling` (BERT's): each token that is not special is chosen independently with probability
`rate`, so a text may have none; of the chosen, 80 % become the mask token, 10 % a random word of the vocabulary (any,
special ones included) and 10 % stay.

With a table of words (`sdfast.modalities.texts.word_table`) a word is chosen instead, by what is drawn for the place of
its first token, and all its tokens with it: so each token is chosen with probability `rate` as before. What becomes of
it is drawn for its own place. This is whole-word masking as in Google's BERT, where the 80, 10 and 10 % are of tokens
too; there words are added until a share of the text is reached, here each is chosen independently.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from sdfast.data.order import Batch
from sdfast.errors import UserError
from sdfast.modalities.texts.batch import TokenBatch, TokenReader, tokens_of
from sdfast.rng import STREAM_TOKEN, philox_words

_MASKED, _MASKED_OR_RANDOM = 0.8, 0.9
_WORDS = 2**32


@dataclass(frozen=True)
class TokenMasking:
    """How tokens are masked.

    Attributes:
        mask_id: id of the mask token.
        vocabulary: words to draw random ones from: ids 0 to `vocabulary` - 1.
        special_ids: ids that are never chosen.
        rate: probability of each other token to be chosen, in (0, 1].
        mask_only: every chosen token becomes the mask token.
        words: [V, 2] bool on the CPU, by id: whether a token continues the word of the one before it, and whether the
            next one continues its word; None chooses tokens.
    """

    mask_id: int
    vocabulary: int
    special_ids: tuple[int, ...]
    rate: float = 0.15
    mask_only: bool = False
    words: Tensor | None = field(default=None, repr=False, compare=False)

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
    drawn = words[:, 0] < int(masking.rate * _WORDS)
    if masking.words is not None:
        drawn = drawn[first_of_word(ids, batch.places, special, masking.words)]
    chosen = (drawn & ~special).nonzero()[:, 0]
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


def first_of_word(ids: Tensor, places: Tensor, special: Tensor, words: Tensor) -> Tensor:
    """[T] int64: where the word of each token begins among the tokens.

    A special token is alone, and no word goes on from one text to the next.

    Args:
        ids, places: [T] int64 on the CPU, tokens and their places in their texts.
        special: [T] bool, those that belong to no word.
        words: see `TokenMasking`.
    """
    joined = words[ids, 0]
    joined[1:] |= words[ids[:-1], 1]
    joined[1:] &= ~special[:-1]
    joined &= ~special & (places > 0)
    return torch.where(joined, 0, torch.arange(len(ids))).cummax(0).values
