"""`scaled_dot_product_attention` for each group: what every build of torch has."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from sdfast.ops.attention.dropped import dropped_attention
from sdfast.ops.attention.groups import Group, Groups, Ragged
from sdfast.ops.attention.reference import by_group, seen_keys
from sdfast.ops.attention.window import attend_in_blocks, worth_blocks

KERNELS = ("efficient_attention", "flash_attention", "cudnn_attention", "flash_attention_for_cpu")  # of torch

# With a mask cuDNN's gradient of the queries can be NaN on Hopper (pytorch#196678, torch 2.11 and later).
_MASKED = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def sdpa_attention(q: Tensor, k: Tensor, v: Tensor, groups: Groups, dropout: float = 0.0) -> Tensor:
    """Arguments as `attend_across` has them.

    On a CPU ragged sequences are computed one by one, without padding; elsewhere, where a launch costs more than the
    padding, they are padded, unless they are so long that a window matters.
    """
    one_by_one = q.device.type == "cpu" or groups.windowed
    if one_by_one or not any(isinstance(group, Ragged) for group in groups.groups):
        return by_group(q, k, v, groups, _one_group, dropout)
    out = []
    parts = q.split(groups.query_sizes), k.split(groups.key_sizes), v.split(groups.key_sizes)
    for group, operands in zip(groups.groups, zip(*parts, strict=True), strict=True):
        if isinstance(group, Ragged):
            out.append(_padded(operands, group, dropout))
        else:
            out.append(by_group(*operands, Groups((group,)), _one_group, dropout))
    return torch.cat(out)


def _padded(operands: tuple[Tensor, Tensor, Tensor], group: Ragged, dropout: float) -> Tensor:
    """Ragged sequences [T, H, d] laid out with padding, and the result taken out of it."""
    (queries, keys), (most_queries, most_keys) = group.counts, group.longest
    device, inner, batch = operands[0].device, operands[0].shape[1:], len(keys)
    asking, seen = _places(queries, most_queries, device), _places(keys, most_keys, device)

    def padded(rows: Tensor, at: Tensor, most: int) -> Tensor:
        wide = rows.new_zeros(batch * most, *inner).index_copy(0, at, rows)
        return wide.view(batch, most, *inner).transpose(1, 2)

    q, k, v = operands
    valid = (torch.arange(most_keys) < keys[:, None]).to(device, non_blocking=True)
    wide = Group(batch, most_queries, most_keys, valid)
    q, k, v = padded(q, asking, most_queries), padded(k, seen, most_keys), padded(v, seen, most_keys)
    attended = _one_group(q, k, v, wide, None, dropout).transpose(1, 2)
    return attended.reshape(batch * most_queries, *inner).index_select(0, asking)


def _places(counts: Tensor, most: int, device: torch.device) -> Tensor:
    """[T] int64 on the device: where each token lies when every sequence takes `most` places."""
    return (torch.arange(most) < counts[:, None]).flatten().nonzero()[:, 0].to(device, non_blocking=True)


def _one_group(q: Tensor, k: Tensor, v: Tensor, group: Group, window: int | None, dropout: float) -> Tensor:
    if window is not None and worth_blocks(group, window):
        return attend_in_blocks(q, k, v, window, functools.partial(_attend, dropout=dropout))
    return _attend(q, k, v, seen_keys(group, window, q.device), dropout)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout: float) -> Tensor:
    if (
        dropout
        and q.device.type == "cpu"
        and q.dtype in (torch.float32, torch.float64)
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
    ):
        return dropped_attention(q, k, v, mask, dropout)
    if mask is not None and q.device.type == "cuda":
        with sdpa_kernel(_MASKED):
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)


def forward_flops(q: Tensor, k: Tensor, v: Tensor, *_: Any, **more: Any) -> int:
    """Both products of one group, q [B, H, N, d], k [B, H, M, d], v [B, H, M, e]."""
    batch, heads, queries, dim = q.shape
    return 2 * batch * heads * queries * k.shape[2] * (dim + v.shape[3])


def backward_flops(grad: Tensor, *operands: Any, **more: Any) -> int:
    """Twice the forward pass: what a fused kernel computes again is not counted."""
    return 2 * forward_flops(*operands)
