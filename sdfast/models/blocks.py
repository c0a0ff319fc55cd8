"""What the models are stacked of: attention, and a transformer block with its LayerNorms before or after."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sdfast.models.checkpointing import CheckpointedBlock
from sdfast.models.compiled import Compilable, segment
from sdfast.ops.attention import Group, Groups, attend, attend_across
from sdfast.ops.linear import Linear, linear
from sdfast.ops.norm import added_norm, is_joined, normed_sum


@dataclass(frozen=True)
class TransformerShape:
    """Sizes of a stack of transformer blocks."""

    width: int
    depth: int
    heads: int
    mlp_width: int

    def block_parameters(self, qkv_bias: bool) -> int:
        """How many numbers a block has: four projections of the attention, two layers of the MLP, two LayerNorms."""
        return self.width * (4 * self.width + 2 * self.mlp_width + 6 + 3 * qkv_bias) + self.mlp_width


class Rows(NamedTuple):
    """The tokens between two blocks, [T, D], and what is still to be added to them, if anything."""

    x: Tensor
    pending: Tensor | None = None


def settled(x: Tensor, pending: Tensor | None) -> Tensor:
    """The sum that is due."""
    return x if pending is None else x + pending


class Attention(nn.Module):
    """Multi-head self-attention with one matrix for query, key and value."""

    backend = "auto"  # see sdfast.ops.attention.attend

    def __init__(
        self,
        width: int,
        heads: int,
        qkv_bias: bool,
        dropout: float,
        attention_dropout: float = 0.0,
        rows_vary: bool = False,
    ) -> None:
        """dropout: after the projection; attention_dropout: of the attention weights; rows_vary: see `Linear`."""
        super().__init__()
        self.heads, self.dim, self.attention_dropout = heads, width // heads, attention_dropout
        self.qkv = Linear(width, 3 * width, qkv_bias, rows_vary)
        self.proj = Linear(width, width, rows_vary=rows_vary)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, groups: Groups, residual: Tensor | None = None) -> Tensor:
        """x, residual: [T, D], the tokens of all groups -> [T, D]."""
        return self.project(self.attended(x, groups), residual)

    def attended(self, x: Tensor, groups: Groups) -> Tensor:
        """What the heads give, before the output projection: x [T, D] -> [T, D]."""
        return attend(self.qkv.heads(x, self.heads), groups, self.backend, self._dropped())

    def some_queries(self, x: Tensor, ids: Tensor, residual: Tensor | None = None) -> Tensor:
        """For some tokens only: x [B, N, D], ids [B, M] of the tokens that ask, residual [B * M, D] -> [B * M, D]."""
        groups = Groups((Group(len(x), ids.shape[1], x.shape[1]),))
        return self.project(self.across(take_tokens(x, ids).flatten(0, 1), x.flatten(0, 1), groups), residual)

    def across(self, asking: Tensor, x: Tensor, groups: Groups) -> Tensor:
        """What the heads give for some tokens, before the output projection: asking [Tq, D] of x [Tk, D] -> [Tq, D]."""
        width = x.shape[1]
        rows_vary = self.qkv.rows_vary
        q = linear(asking, self.qkv.weight[:width], self._bias(0, 1), rows_vary=rows_vary)
        kv = linear(x, self.qkv.weight[width:], self._bias(1, 3), rows_vary=rows_vary)
        q, kv = q.view(len(q), self.heads, self.dim), kv.view(len(kv), 2, self.heads, self.dim)
        return attend_across(q, kv, groups, self.backend, self._dropped())

    def first_query(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """For the first token only: x [B, N, D], residual [B, D] -> [B, D].

        No key and no value is made: q . (W_k x_j) = (W_k^T q) . x_j, and sum_j p_j (W_v x_j) = W_v sum_j p_j x_j, which
        take one row of D numbers a head where the projections take D rows. The key's bias adds the same to every score.
        """
        batch, _, width = x.shape
        heads, dim = self.heads, self.dim
        w_q, w_k, w_v = self.qkv.weight.view(3, heads, dim, width).unbind(0)
        q = linear(x[:, 0], w_q.flatten(0, 1), self._bias(0, 1)).view(batch, heads, dim)
        asked = torch.einsum("bhd,hdw->bhw", q * dim**-0.5, w_k)
        weights = (asked @ x.transpose(1, 2)).softmax(dim=-1)
        out = torch.einsum("bhw,hdw->bhd", weights @ x, w_v).flatten(1)
        bias = self._bias(2, 3)
        return self.project(out if bias is None else out + bias, residual)

    def project(self, attended: Tensor, residual: Tensor | None = None) -> Tensor:
        """The output projection, and what it is added to, if anything."""
        if self.training and self.dropout.p:
            change = self.dropout(self.proj(attended))
            return change if residual is None else residual + change
        return self.proj(attended, residual)

    def _dropped(self) -> float:
        """Probability of an attention weight to be dropped now."""
        return self.attention_dropout if self.training else 0.0

    def _bias(self, first: int, last: int) -> Tensor | None:
        """The bias of the query (0), key (1) and value (2) from `first` to `last`, exclusive."""
        width = self.qkv.in_features
        return None if self.qkv.bias is None else self.qkv.bias[first * width : last * width]


class Block(CheckpointedBlock, Compilable):
    """Pre-norm transformer block: attention and MLP (exact GELU), each behind a LayerNorm and a residual."""

    def __init__(self, shape: TransformerShape, norm_eps: float, qkv_bias: bool, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(shape.width, eps=norm_eps)
        self.attn = Attention(shape.width, shape.heads, qkv_bias, dropout)
        self.norm2 = nn.LayerNorm(shape.width, eps=norm_eps)
        self.fc1 = Linear(shape.width, shape.mlp_width)
        self.fc2 = Linear(shape.mlp_width, shape.width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, groups: Groups) -> Tensor:
        """[T, D], the tokens of all groups -> [T, D]."""
        return self.mlp(self.attn(self.norm1(x), groups, x))

    def advance(self, rows: Rows, groups: Groups) -> Rows:
        """The tokens of all groups, one block further."""
        if self.compiled or is_joined(rows.x):
            return Rows(*self.run(self.carry, *rows, groups))
        return Rows(self.run(self, settled(*rows), groups))

    @segment()
    def carry(self, x: Tensor, pending: Tensor | None, groups: Groups) -> tuple[Tensor, Tensor]:
        """The block but for its last sum, which the next one makes in one kernel with its LayerNorm: see `Rows`."""
        x, normed = added_norm(self.norm1, x, pending)
        x, normed = added_norm(self.norm2, x, self.attn(normed, groups))
        change = self.fc2(self.fc1.gelu(normed))
        return x, self.dropout(change) if self._drops else change

    @segment()
    def some_queries(self, x: Tensor, ids: Tensor, pending: Tensor | None = None) -> Tensor:
        """The block's output at some tokens only: x and what is pending [B, N, D], ids [B, M] -> [B * M, D]."""
        x, normed = added_norm(self.norm1, x, pending)
        here = take_tokens(x, ids).flatten(0, 1)
        if is_joined(here):
            return self.mlp(here, self.attn.some_queries(normed, ids))
        return self.mlp(self.attn.some_queries(normed, ids, here))

    @segment()
    def first_query(self, x: Tensor, pending: Tensor | None = None) -> Tensor:
        """The block's output at the first token only: x and what is pending [B, N, D] -> [B, D]."""
        x, normed = added_norm(self.norm1, x, pending)
        return self.mlp(self.attn.first_query(normed, x[:, 0]))

    def mlp(self, x: Tensor, change: Tensor | None = None) -> Tensor:
        """The second half, of x and a change that is still to be added, if any: [T, D] -> [T, D]."""
        x, normed = added_norm(self.norm2, x, change)
        hidden = self.fc1.gelu(normed)
        return x + self.dropout(self.fc2(hidden)) if self._drops else self.fc2(hidden, x)

    @property
    def _drops(self) -> bool:
        return self.training and self.dropout.p > 0


class PostNormBlock(CheckpointedBlock, Compilable):
    """Post-norm transformer block: attention and MLP (exact GELU), each with a residual, each before a LayerNorm."""

    def __init__(
        self,
        shape: TransformerShape,
        norm_eps: float,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        projection_dropout: float | None = None,
    ) -> None:
        """Rates of dropping: behind the MLP, of attention weights, behind the attention (None: as behind the MLP)."""
        super().__init__()
        projected = dropout if projection_dropout is None else projection_dropout
        self.attn = Attention(shape.width, shape.heads, True, projected, attention_dropout, rows_vary=True)
        self.norm1 = nn.LayerNorm(shape.width, eps=norm_eps)
        self.fc1 = Linear(shape.width, shape.mlp_width, rows_vary=True)
        self.fc2 = Linear(shape.mlp_width, shape.width, rows_vary=True)
        self.norm2 = nn.LayerNorm(shape.width, eps=norm_eps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, groups: Groups) -> Tensor:
        """[T, D], the tokens of all groups -> [T, D]."""
        return self.after_attention(self.attn.attended(x, groups), x)

    def some_rows(self, x: Tensor, rows: Tensor, groups: Groups) -> Tensor:
        """The block's output at some tokens only: x [T, D], rows [M] int64 on its device -> [M, D]."""
        here = x.index_select(0, rows)
        return self.after_attention(self.attn.across(here, x, groups), here)

    @segment(dynamic=True)
    def after_attention(self, attended: Tensor, residual: Tensor) -> Tensor:
        """The block but for its attention: what the heads gave [T, D], the block's input there [T, D] -> [T, D]."""
        if is_joined(residual):
            x, normed = normed_sum(self.norm1, residual, self.attn.project(attended))
            return normed_sum(self.norm2, x, self.dropout(self.fc2(self.fc1.gelu(normed))))[0]
        x = self.norm1(self.attn.project(attended, residual))
        hidden = self.fc1.gelu(x)
        if self.training and self.dropout.p:
            return self.norm2(x + self.dropout(self.fc2(hidden)))
        return self.norm2(self.fc2(hidden, x))


def take_tokens(tokens: Tensor, ids: Tensor) -> Tensor:
    """tokens [B, N, D], ids [B, K] -> [B, K, D]."""
    return tokens.gather(1, ids.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def use_attention(module: nn.Module, backend: str) -> None:
    """Have all attention layers of a module compute with a backend (see `sdfast.ops.attention.attend`)."""
    for layer in module.modules():
        if isinstance(layer, Attention):
            layer.backend = backend
