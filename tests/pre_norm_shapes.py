"""Shapes of small ModernBERTs and EuroBERTs, and transformers' modules of these in float64 throughout."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from sdfast.modalities.texts.model import TextShape
from sdfast.modalities.texts.prenorm import PreNorm
from sdfast.models.blocks import Style, TransformerShape

_BARE = {"gated": True, "proj_bias": False, "mlp_bias": False}
_STYLES = {
    "modernbert": Style(norm_bias=False, **_BARE),
    "eurobert": Style(activation="silu", norm="rms", kv_heads=1, **_BARE),
}
_MORE = {
    "modernbert": PreNorm(160_000.0, 10_000.0, window=3, local=(False, True)),
    "eurobert": PreNorm(250_000.0, 250_000.0, tied=False, word_bias=False, dense_bias=True, pooling="late"),
}


def pre_norm_shape(kind: str, vocabulary: int, positions: int, pad_id: int, encoder: TransformerShape) -> TextShape:
    """ModernBERT whose last block has a window, or EuroBERT with one head of keys and a head of its own."""
    encoder = replace(encoder, style=_STYLES[kind])
    return TextShape(kind, vocabulary, positions, 0, pad_id, encoder, 1e-5, pre_norm=_MORE[kind])


def in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have transformers' modules compute in their own dtype where they go through float32 in any."""
    modern = pytest.importorskip("transformers.models.modernbert.modeling_modernbert")
    euro = pytest.importorskip("transformers.models.eurobert.modeling_eurobert")
    monkeypatch.setattr(modern, "apply_rotary_pos_emb", euro.apply_rotary_pos_emb)

    def forward(self: Any, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))

    monkeypatch.setattr(euro.EuroBertRMSNorm, "forward", forward)
