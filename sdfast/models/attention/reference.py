"""The specification: scores, softmax, weighted sum, group by group."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sdfast.models.attention.groups import Groups

OneGroup = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]


def reference_attention(q: Tensor, k: Tensor, v: Tensor, groups: Groups) -> Tensor:
    """softmax(q k^T / sqrt(d)) v within each sequence; see `attend_across` for the arguments."""
    return by_group(q, k, v, groups, _one_group)


def by_group(q: Tensor, k: Tensor, v: Tensor, groups: Groups, attend_one: OneGroup) -> Tensor:
    """Evaluate group by group with `attend_one(q, k, v, valid)`, whose operands and result are [B, H, N, d]."""
    out = []
    queries, keys, values = q.split(groups.query_sizes), k.split(groups.key_sizes), v.split(groups.key_sizes)
    for group, *parts in zip(groups.groups, queries, keys, values, strict=True):
        tokens = (group.queries, group.keys, group.keys)
        asking, seen, read = (
            part.view(group.batch, count, *part.shape[1:]).transpose(1, 2)
            for part, count in zip(parts, tokens, strict=True)
        )
        attended = attend_one(asking, seen, read, group.valid)
        out.append(attended.transpose(1, 2).reshape(group.batch * group.queries, *q.shape[1:]))
    return out[0] if len(out) == 1 else torch.cat(out)


def key_mask(valid: Tensor | None) -> Tensor | None:
    """[B, N] -> [B, 1, 1, N], for scores [B, H, N, N]."""
    return None if valid is None else valid[:, None, None, :]


def _one_group(q: Tensor, k: Tensor, v: Tensor, valid: Tensor | None) -> Tensor:
    scores = (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5
    mask = key_mask(valid)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return scores.softmax(dim=-1) @ v
