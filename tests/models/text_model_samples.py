"""Small models of every kind, and token sequences of several lengths, unpadded for us and padded for transformers."""

from __future__ import annotations

import torch
from pre_norm_shapes import pre_norm_shape
from torch import Tensor, nn

from sdfast.modalities.texts.batch import TokenBatch
from sdfast.modalities.texts.families import FAMILIES
from sdfast.modalities.texts.model import TextShape
from sdfast.models.blocks import TransformerShape

KINDS = [family.name for family in FAMILIES.values()]  # as transformers' classes begin
_SIZES = {"vocabulary": 60, "positions": 40, "encoder": TransformerShape(32, 2, 4, 48)}
SHAPES = {
    "bert": TextShape("bert", types=2, pad_id=0, norm_eps=1e-5, **_SIZES),
    **{
        kind: TextShape(kind, types=1, pad_id=1, norm_eps=1e-5, **_SIZES)
        for kind in ("roberta", "xlm-roberta", "camembert")
    },
    "distilbert": TextShape("distilbert", types=0, pad_id=0, **_SIZES),
    "electra": TextShape("electra", types=2, pad_id=0, norm_eps=1e-5, embedding=24, **_SIZES),
    **{kind: pre_norm_shape(kind, pad_id=0, **_SIZES) for kind in ("modernbert", "eurobert")},
}
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
