"""Token sequences of several lengths, unpadded for us and padded for transformers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sdfast.modalities.texts.batch import TokenBatch

LENGTHS = torch.tensor([7, 1, 12, 12, 3])
IDS = torch.randint(5, 60, (35,), generator=torch.Generator().manual_seed(3))  # none is padding
BATCH = TokenBatch(IDS, LENGTHS)


def padded(batch: TokenBatch, pad_id: int) -> tuple[Tensor, Tensor]:
    """[B, N] ids with padding behind, and [B, N] int64 attention mask."""
    rows = batch.ids.split(batch.lengths.tolist())
    ids = nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=pad_id)
    return ids, (torch.arange(ids.shape[1]) < batch.lengths[:, None]).long()


def unpadded(wide: Tensor, batch: TokenBatch) -> Tensor:
    """[B, N, ...] -> [T, ...]."""
    return torch.cat([row[:length] for row, length in zip(wide, batch.lengths.tolist(), strict=True)])
