"""A batch of token sequences without padding: their ids one after the other, and their lengths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

TokenReader = Callable[[Tensor], tuple[Tensor, Tensor]]  # rows [B] int64 -> ids [T] int64, lengths [B] int64


@dataclass(frozen=True, eq=False)
class TokenBatch:
    """Sequences of any length.

    Attributes:
        ids: [T] int64, sequence after sequence, special tokens included.
        lengths: [B] int64 on the CPU, tokens of each sequence, at least 1; T in all.
    """

    ids: Tensor
    lengths: Tensor

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, rows: slice) -> TokenBatch:
        """Some consecutive sequences; nothing is copied."""
        return TokenBatch(self.ids[tokens_of(self.lengths, rows)], self.lengths[rows])

    def to(self, device: torch.device) -> TokenBatch:
        """The batch with its ids on a device."""
        return TokenBatch(self.ids.to(device, non_blocking=True), self.lengths)

    @property
    def device(self) -> torch.device:
        """Where the ids are."""
        return self.ids.device

    @property
    def first(self) -> Tensor:
        """[B] int64 on the CPU: where each sequence begins."""
        return starts(self.lengths)

    @property
    def places(self) -> Tensor:
        """[T] int64 on the CPU: the place of each token within its sequence, from 0."""
        return torch.arange(int(self.lengths.sum())) - torch.repeat_interleave(self.first, self.lengths)


def tokens_of(lengths: Tensor, rows: slice) -> slice:
    """Where the tokens of consecutive sequences lie; `rows` has a step of 1."""
    first, last, step = rows.indices(len(lengths))
    if step != 1:
        raise ValueError(f"sequences are taken one after the other, not every {step}")
    begin = int(lengths[:first].sum())
    return slice(begin, begin + int(lengths[first:last].sum()))


def starts(lengths: Tensor) -> Tensor:
    """[B] int64: where each of the sequences begins that lie one after the other."""
    return lengths.cumsum(0) - lengths


def mean_of_words(encoder: Any, texts: TokenBatch, first: int, last: int) -> Tensor:
    """[B, D]: the mean over the tokens of each text without the `first` and `last` ones, which stand for no word."""
    states, lengths = encoder.features(texts, "all"), texts.lengths
    places, owner = texts.places, torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    inside = (places >= first) & (places < lengths[owner] - last)
    chosen, owner = states[inside.to(states.device)], owner[inside].to(states.device)
    sums = states.new_zeros(len(lengths), states.shape[1]).index_add(0, owner, chosen)
    return sums / (lengths - first - last).to(states)[:, None]
