"""Windowed attention of long sequences in blocks, so that its cost grows with their length and not with its square."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from sdfast.ops.attention.groups import Group

_LEAST = 64  # queries of a block: below that there are too many of them


def worth_blocks(group: Group, window: int) -> bool:
    """Whether the sequences are so long that blocks multiply fewer numbers than all queries with all keys.

    Only of sequences whose tokens all ask, and that have no padding.
    """
    themselves = group.valid is None and group.places is None and group.queries == group.keys
    return themselves and group.keys >= 2 * (_size(window) + 2 * window)


def attend_in_blocks(
    q: Tensor, k: Tensor, v: Tensor, window: int, attend: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
) -> Tensor:
    """Attention of every token to those at most `window` places away.

    The queries are cut into blocks, and each is given the keys within the window of any of them.

    Args:
        q, k, v: [B, H, N, d].
        window: places, W.
        attend: attention of queries [n, B * H, S, d] to keys and values [n, B * H, S + 2 W, d] that a mask
            [n, 1, S, S + 2 W] lets them see; a block is S queries, and n blocks hold all.

    Returns:
        [B, H, N, d].
    """
    batch, heads, tokens, dim = q.shape
    size = _size(window)
    count = -(-tokens // size)
    spare = count * size - tokens

    def rows(x: Tensor, beside: int) -> Tensor:
        """Block after block, each with so many rows on either side: [n, B * H, S + 2 * beside, d]."""
        wide = F.pad(x.flatten(0, 1), (0, 0, beside, beside + spare))
        return wide.unfold(1, size + 2 * beside, size).permute(1, 0, 3, 2)

    mask = _near(tokens, count, size, window, q.device)[:, None]
    out = attend(rows(q, 0), rows(k, window), rows(v, window), mask)
    return out.transpose(0, 1).reshape(batch, heads, count * size, dim)[:, :, :tokens]


def _size(window: int) -> int:
    """Queries of a block: as many as keys beside them."""
    return max(2 * window, _LEAST)


def _near(tokens: int, count: int, size: int, window: int, device: torch.device) -> Tensor:
    """[n, S, S + 2 W] bool: which of its keys each query of a block sees.

    Behind the last token are queries that no token asks: they see what is not there, as a softmax needs something.
    """
    first = torch.arange(count, device=device)[:, None, None] * size
    query = first + torch.arange(size, device=device)[:, None]
    key = first - window + torch.arange(size + 2 * window, device=device)
    there = (key >= 0) & (key < tokens)
    return ((query - key).abs() <= window) & (there | (query >= tokens))
