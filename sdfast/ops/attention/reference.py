"""The specification: scores, softmax, dropout, weighted sum, sequence by sequence or group by group."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from sdfast.ops.attention.groups import Group, Groups, Ragged

OneGroup = Callable[[Tensor, Tensor, Tensor, Group, int | None, float], Tensor]


def reference_attention(q: Tensor, k: Tensor, v: Tensor, groups: Groups, dropout: float = 0.0) -> Tensor:
    """dropout(softmax(q k^T / sqrt(d))) v within each sequence; arguments as `attend_across` has them.

    The softmax is over the keys that a query sees: those that are valid, and within the window of the groups.
    """
    return by_group(q, k, v, groups, _one_group, dropout)


def by_group(q: Tensor, k: Tensor, v: Tensor, groups: Groups, attend_one: OneGroup, dropout: float = 0.0) -> Tensor:
    """Evaluate group by group with `attend_one(q, k, v, group, window, dropout)`; operands and result are [B, H, N, d].

    Ragged sequences are evaluated one by one, those of equal length that lie together at once. The window is None for
    those that are so short that all their tokens see each other.
    """
    alike = [each for group in groups.groups for each in _alike(group)]
    query_sizes, key_sizes = [each.rows[0] for each in alike], [each.rows[1] for each in alike]
    out = []
    queries, keys, values = q.split(query_sizes), k.split(key_sizes), v.split(key_sizes)
    for group, *parts in zip(alike, queries, keys, values, strict=True):
        if not group.queries:
            continue
        tokens = (group.queries, group.keys, group.keys)
        asking, seen, read = (
            part.view(group.batch, count, *part.shape[1:]).transpose(1, 2)
            for part, count in zip(parts, tokens, strict=True)
        )
        window = groups.window if groups.window is not None and group.keys > groups.window + 1 else None
        attended = attend_one(asking, seen, read, group, window, dropout)
        out.append(attended.transpose(1, 2).reshape(group.rows[0], *q.shape[1:]))
    if not out:
        return q + 0.0 * (k.sum() + v.sum())  # no rows, and zeros as gradients of the keys and values
    return out[0] if len(out) == 1 else torch.cat(out)


def _alike(group: Group | Ragged) -> Iterator[Group]:
    """The same sequences as groups of equal length."""
    if isinstance(group, Group):
        yield group
        return
    queries, keys = (count.tolist() for count in group.counts)
    first = 0
    for (asking, seen), same in itertools.groupby(zip(queries, keys, strict=True)):
        batch = len(list(same))
        places = None if group.places is None else group.places[first : first + batch * asking].view(batch, asking)
        yield Group(batch, asking, seen, places=places)
        first += batch * asking


def seen_keys(group: Group, window: int | None, device: torch.device) -> Tensor | None:
    """Which keys each query sees, for scores [B, H, N, N]: bool [B or 1, 1, N or 1, N], or None for all."""
    mask = group.valid
    if mask is not None:
        mask = mask[:, None, None] if mask.dim() == 2 else mask[:, None]
    if window is None:
        return mask
    places = torch.arange(group.queries)[None] if group.places is None else group.places
    near = ((places[:, :, None] - torch.arange(group.keys)).abs() <= window)[:, None].to(device, non_blocking=True)
    if mask is None:
        return near
    seen = near & mask
    return seen | ~seen.any(
        dim=-1, keepdim=True
    )  # a query of padding that is far from all else: a softmax needs something


def _one_group(q: Tensor, k: Tensor, v: Tensor, group: Group, window: int | None, dropout: float) -> Tensor:
    scores = (q @ k.transpose(-2, -1)) * q.shape[-1] ** -0.5
    mask = seen_keys(group, window, q.device)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    return F.dropout(scores.softmax(dim=-1), dropout) @ v
