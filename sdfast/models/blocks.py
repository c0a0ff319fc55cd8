"""What the models are stacked of: attention, and a transformer block with its LayerNorms before or after."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdfast.models.checkpointing import CheckpointedBlock
from sdfast.models.compiled import Compilable, segment
from sdfast.models.weights import later
from sdfast.ops.attention import Group, Groups, attend, attend_across
from sdfast.ops.linear import Linear, keyless, linear
from sdfast.ops.norm import added_norm, is_joined, normed_sum

Activation = Literal["gelu", "gelu_tanh", "quick_gelu", "silu"]
ACTIVATIONS: Mapping[Activation, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": F.silu,
}


@dataclass(frozen=True)
class Style:
    """How a pre-norm block differs from that of a ViT.

    Attributes:
        activation: of the MLP.
        gated: the MLP is fc2(activation(a) * b), a and b the two halves of what fc1 gives.
        norm: LayerNorm, or RMSNorm (Zhang and Sennrich, 2019).
        norm_bias, proj_bias, mlp_bias: whether norms, the attention's output projection and the MLP have biases.
        kv_heads: heads of keys and values, each for as many of the queries' (Ainslie et al., 2023); None for one each.
        key_bias: whether keys have a bias where queries and values do.
    """

    activation: Activation = "gelu"
    gated: bool = False
    norm: Literal["layer", "rms"] = "layer"
    norm_bias: bool = True
    proj_bias: bool = True
    mlp_bias: bool = True
    kv_heads: int | None = None
    key_bias: bool = later(True)

    def make_norm(self, width: int, eps: float) -> nn.Module:
        """A norm of so many features."""
        return nn.RMSNorm(width, eps) if self.norm == "rms" else nn.LayerNorm(width, eps, bias=self.norm_bias)


PLAIN = Style()


@dataclass(frozen=True)
class TransformerShape:
    """Sizes of a stack of transformer blocks, and their style."""

    width: int
    depth: int
    heads: int
    mlp_width: int
    style: Style = later(PLAIN)

    def block_parameters(self, qkv_bias: bool) -> int:
        """How many numbers a block has: four projections of the attention, the layers of the MLP, two norms."""
        style, width = self.style, self.width
        keys = width // self.heads * (style.kv_heads or self.heads)
        hidden = (1 + style.gated) * self.mlp_width
        products = width * (2 * width + 2 * keys + hidden + self.mlp_width)
        biases = (
            qkv_bias * (width + (1 + style.key_bias) * keys)
            + style.proj_bias * width
            + style.mlp_bias * (hidden + width)
        )
        return products + biases + width * (2 + 2 * (style.norm == "layer" and style.norm_bias))


class Turn(NamedTuple):
    """Rotary position embeddings of tokens (Su et al., 2021): cosine and sine, [T, d] each, of a head's features.

    Feature i of the first half and i of the second are one pair. A token without a position has cosine 1 and sine 0.
    """

    cos: Tensor
    sin: Tensor

    def of(self, x: Tensor) -> Tensor:
        """Queries or keys [T, H, d], turned, in their dtype."""
        first, second = x.chunk(2, dim=-1)
        turned = x * self.cos[:, None] + torch.cat((-second, first), dim=-1) * self.sin[:, None]
        return turned.to(x.dtype)

    def at(self, ids: Tensor) -> Turn:
        """Those of some tokens of every sequence: of [B * N, d], ids [B, M] -> [B * M, d]."""
        return Turn(*(take_tokens(each.view(len(ids), -1, each.shape[-1]), ids).flatten(0, 1) for each in self))


class Rows(NamedTuple):
    """The tokens between two blocks, [T, D], and what is still to be added to them, if anything."""

    x: Tensor
    pending: Tensor | None = None


def settled(x: Tensor, pending: Tensor | None) -> Tensor:
    """The sum that is due."""
    return x if pending is None else x + pending


class Attention(nn.Module):
    """Multi-head self-attention with one matrix for query, key and value.

    `turn` is of the tokens that attend and are seen; None without rotary positions.
    """

    backend = "auto"  # see sdfast.ops.attention.attend

    def __init__(
        self,
        width: int,
        heads: int,
        qkv_bias: bool,
        dropout: float,
        attention_dropout: float = 0.0,
        rows_vary: bool = False,
        style: Style = PLAIN,
    ) -> None:
        """dropout: after the projection; attention_dropout: of the attention weights; rows_vary: see `Linear`."""
        super().__init__()
        self.heads, self.dim, self.attention_dropout = heads, width // heads, attention_dropout
        self.kv_heads = style.kv_heads or heads
        sizes = (width, self.kv_heads * self.dim, self.kv_heads * self.dim)  # of queries, keys and values
        if qkv_bias and not style.key_bias:
            self.qkv = keyless(width, sizes, rows_vary)
        else:
            self.qkv = Linear(width, sum(sizes), qkv_bias, rows_vary)
        self.proj = Linear(width, width, style.proj_bias, rows_vary)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, groups: Groups, residual: Tensor | None = None, turn: Turn | None = None) -> Tensor:
        """x, residual: [T, D], the tokens of all groups -> [T, D]."""
        return self.project(self.attended(x, groups, turn), residual)

    def attended(self, x: Tensor, groups: Groups, turn: Turn | None = None) -> Tensor:
        """What the heads give, before the output projection: x [T, D] -> [T, D]."""
        if turn is None and self.kv_heads == self.heads:
            return attend(self.qkv.heads(x, self.heads), groups, self.backend, self._dropped())
        both = self.heads + self.kv_heads
        qk, v = self.qkv(x).view(x.shape[0], -1, self.dim).tensor_split([both], dim=1)
        q, k = (qk if turn is None else turn.of(qk)).tensor_split([self.heads], dim=1)
        return attend((q, self._for_all(k), self._for_all(v)), groups, self.backend, self._dropped())

    def some_queries(self, x: Tensor, ids: Tensor, residual: Tensor | None = None, turn: Turn | None = None) -> Tensor:
        """For some tokens only: x [B, N, D], ids [B, M] of the tokens that ask, residual [B * M, D] -> [B * M, D]."""
        groups = Groups((Group(len(x), ids.shape[1], x.shape[1]),))
        asking, turns = take_tokens(x, ids).flatten(0, 1), None if turn is None else (turn.at(ids), turn)
        return self.project(self.across(asking, x.flatten(0, 1), groups, turns), residual)

    def across(self, asking: Tensor, x: Tensor, groups: Groups, turns: tuple[Turn, Turn] | None = None) -> Tensor:
        """What the heads give for some tokens, before the output projection: asking [Tq, D] of x [Tk, D] -> [Tq, D].

        `turns` are of those that ask and of all.
        """
        width = x.shape[1]
        rows_vary = self.qkv.rows_vary
        q = linear(asking, self.qkv.weight[:width], self._bias(0, width), rows_vary=rows_vary)
        kv = linear(x, self.qkv.weight[width:], self._bias(width), rows_vary=rows_vary)
        q, kv = q.view(len(q), self.heads, self.dim), kv.view(len(kv), 2, self.kv_heads, self.dim)
        if turns is not None:
            of_asking, of_all = turns
            k, v = kv.unbind(1)
            q, kv = of_asking.of(q), torch.stack((of_all.of(k), v), dim=1)
        return attend_across(q, self._for_all(kv), groups, self.backend, self._dropped())

    def first_query(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """For the first token only: x [B, N, D], residual [B, D] -> [B, D].

        No key and no value is made: q . (W_k x_j) = (W_k^T q) . x_j, and sum_j p_j (W_v x_j) = W_v sum_j p_j x_j, which
        take one row of D numbers a head where the projections take D rows. The key's bias adds the same to every score.
        """
        batch, _, width = x.shape
        heads, dim = self.heads, self.dim
        w_q, w_k, w_v = self.qkv.weight.view(3, heads, dim, width).unbind(0)
        q = linear(x[:, 0], w_q.flatten(0, 1), self._bias(0, width)).view(batch, heads, dim)
        asked = torch.einsum("bhd,hdw->bhw", q * dim**-0.5, w_k)
        weights = (asked @ x.transpose(1, 2)).softmax(dim=-1)
        out = torch.einsum("bhw,hdw->bhd", weights @ x, w_v).flatten(1)
        bias = self._bias(2 * width)
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

    def _bias(self, first: int, last: int | None = None) -> Tensor | None:
        """The bias of queries, keys and values, one after the other, from one output to another."""
        bias = self.qkv.whole_bias()
        return None if bias is None else bias[first:last]

    def _for_all(self, heads: Tensor) -> Tensor:
        """Keys or values [..., K, d], each as often as there are queries' heads for it -> [..., H, d]."""
        if self.kv_heads == self.heads:
            return heads
        return heads.repeat_interleave(self.heads // self.kv_heads, dim=-2)


class Block(CheckpointedBlock, Compilable):
    """Pre-norm transformer block: attention and MLP, each behind a norm and a residual.

    `turn` is of the tokens that are given, [B * N, d] where they are [B, N, D]; None without rotary positions.
    """

    def __init__(
        self,
        shape: TransformerShape,
        norm_eps: float,
        qkv_bias: bool,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        rows_vary: bool = False,
    ) -> None:
        super().__init__()
        style = self.style = shape.style
        self.norm1 = style.make_norm(shape.width, norm_eps)
        self.attn = Attention(shape.width, shape.heads, qkv_bias, dropout, attention_dropout, rows_vary, style)
        self.norm2 = style.make_norm(shape.width, norm_eps)
        self.fc1 = Linear(shape.width, (1 + style.gated) * shape.mlp_width, style.mlp_bias, rows_vary)
        self.fc2 = Linear(shape.mlp_width, shape.width, style.mlp_bias, rows_vary)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, groups: Groups, turn: Turn | None = None) -> Tensor:
        """[T, D], the tokens of all groups -> [T, D]."""
        return self.mlp(self.attn(self.norm1(x), groups, x, turn))

    def advance(self, rows: Rows, groups: Groups, turn: Turn | None = None) -> Rows:
        """The tokens of all groups, one block further."""
        if self.compiled or is_joined(rows.x):
            return Rows(*self.run(self.carry, *rows, groups, turn))
        return Rows(self.run(self, settled(*rows), groups, turn))

    @segment()
    def carry(
        self, x: Tensor, pending: Tensor | None, groups: Groups, turn: Turn | None = None
    ) -> tuple[Tensor, Tensor]:
        """The block but for its last sum, which the next one makes in one kernel with its norm: see `Rows`."""
        x, normed = added_norm(self.norm1, x, pending)
        x, normed = added_norm(self.norm2, x, self.attn(normed, groups, None, turn))
        change = self.fc2(self.hidden(normed))
        return x, self.dropout(change) if self._drops else change

    @segment()
    def some_queries(self, x: Tensor, ids: Tensor, pending: Tensor | None = None, turn: Turn | None = None) -> Tensor:
        """The block's output at some tokens only: x and what is pending [B, N, D], ids [B, M] -> [B * M, D]."""
        x, normed = added_norm(self.norm1, x, pending)
        here = take_tokens(x, ids).flatten(0, 1)
        if is_joined(here):
            return self.mlp(here, self.attn.some_queries(normed, ids, None, turn))
        return self.mlp(self.attn.some_queries(normed, ids, here, turn))

    @segment()
    def first_query(self, x: Tensor, pending: Tensor | None = None, turn: Turn | None = None) -> Tensor:
        """The block's output at the first token only: x and what is pending [B, N, D] -> [B, D].

        Keys that are turned, or that several heads share, are made.
        """
        if turn is not None or self.attn.kv_heads != self.attn.heads:
            return self.some_queries(x, torch.zeros((len(x), 1), dtype=torch.int64, device=x.device), pending, turn)
        x, normed = added_norm(self.norm1, x, pending)
        return self.mlp(self.attn.first_query(normed, x[:, 0]))

    def mlp(self, x: Tensor, change: Tensor | None = None) -> Tensor:
        """The second half, of x and a change that is still to be added, if any: [T, D] -> [T, D]."""
        x, normed = added_norm(self.norm2, x, change)
        hidden = self.hidden(normed)
        return x + self.dropout(self.fc2(hidden)) if self._drops else self.fc2(hidden, x)

    def hidden(self, x: Tensor) -> Tensor:
        """What the MLP's second layer is given: [T, D] -> [T, mlp_width]."""
        if self.style.activation == "gelu" and not self.style.gated:
            return self.fc1.gelu(x)
        activation = ACTIVATIONS[self.style.activation]
        if not self.style.gated:
            return activation(self.fc1(x))
        gate, up = self.fc1(x).chunk(2, dim=-1)
        return activation(gate) * up

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
