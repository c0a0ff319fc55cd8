"""The blocks of pre-norm models of texts, with rotary positions and windows: ModernBERT's and EuroBERT's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from sdfast.models.blocks import Activation, Block, TransformerShape, Turn
from sdfast.models.compiled import segment
from sdfast.ops.attention import Groups
from sdfast.ops.norm import added_norm, is_joined

Pooling = Literal["cls", "mean", "late"]


@dataclass(frozen=True)
class PreNorm:
    """How a pre-norm model of texts differs from a BERT, beside the style of its blocks.

    Attributes:
        base: of the rotary positions, in blocks whose tokens see all of their sequence.
        local_base: of those in blocks with a window.
        window: in these a token sees those of its sequence that are at most so many places away.
        local: which blocks have a window, from the first on, and again from the beginning after the last of these.
        qkv_bias: whether queries, keys and values have a bias.
        tied: the language-model head's last matrix is that of the words' embeddings.
        word_bias: that layer has a bias.
        dense_bias: the heads' dense layer has one.
        activation: behind that.
        pooling: what a classifier is given: the first token, the mean of all, or the mean of what the dense layer and
            the activation make of each (`late`).
    """

    base: float
    local_base: float = 1e4
    window: int = 0
    local: tuple[bool, ...] = (False,)
    qkv_bias: bool = False
    tied: bool = True
    word_bias: bool = True
    dense_bias: bool = False
    activation: Activation = "gelu"
    pooling: Pooling = "cls"

    def is_local(self, block: int) -> bool:
        """Whether a block, counted from 0, has a window."""
        return self.local[block % len(self.local)]


class PreNormBlock(Block):
    """A pre-norm block for sequences of any length.

    Its attention stands outside of what is compiled, and dropout between the MLP's two layers. The first block of some
    models has no norm before its attention, as there is one behind the embeddings.
    """

    def __init__(
        self,
        shape: TransformerShape,
        norm_eps: float,
        qkv_bias: bool,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        projection_dropout: float = 0.0,
        normed: bool = True,
    ) -> None:
        super().__init__(shape, norm_eps, qkv_bias, projection_dropout, attention_dropout, rows_vary=True)
        self.dropout = nn.Dropout(dropout)
        if not normed:
            self.norm1 = nn.Identity()

    def forward(self, x: Tensor, groups: Groups, turn: Turn) -> Tensor:  # type: ignore[override]
        """[T, D], the tokens of all groups -> [T, D]."""
        return self.after_attention(self.attn.attended(self._normed(x), groups, turn), x)

    def some_rows(self, x: Tensor, rows: Tensor, groups: Groups, turns: tuple[Turn, Turn]) -> Tensor:
        """The block's output at some tokens only.

        Args:
            x: [T, D].
            rows: [M] int64 on its device, the tokens.
            groups: with their places.
            turns: of these tokens, and of all.

        Returns:
            [M, D].
        """
        normed = self._normed(x)
        attended = self.attn.across(normed.index_select(0, rows), normed, groups, turns)
        return self.after_attention(attended, x.index_select(0, rows))

    @segment(dynamic=True)
    def after_attention(self, attended: Tensor, residual: Tensor) -> Tensor:
        """The block but for its attention: what the heads gave [T, D], the block's input there [T, D] -> [T, D]."""
        if is_joined(residual):
            x, normed = added_norm(self.norm2, residual, self.attn.project(attended))
        else:
            x, normed = added_norm(self.norm2, self.attn.project(attended, residual))
        return self.fc2(self.dropout(self.hidden(normed)), x)

    def _normed(self, x: Tensor) -> Tensor:
        return x if isinstance(self.norm1, nn.Identity) else added_norm(self.norm1, x)[1]


def rotary_table(base: float, dim: int, tokens: int, device: torch.device) -> Turn:
    """The turns of the places 0 to `tokens` - 1 in a head of `dim` features: float32, as transformers makes them.

    Feature i of the first half, and that of the second, turn by place / base ^ (2 i / dim) (Su et al., 2021).
    """
    speeds = 1.0 / base ** (torch.arange(0, dim, 2, dtype=torch.float32, device=device) / dim)
    angles = torch.arange(tokens, dtype=torch.float32, device=device)[:, None] * speeds
    angles = torch.cat((angles, angles), dim=1)
    return Turn(angles.cos(), angles.sin())
