"""Some rows at a time (`sdfast.losses.linear_chunks`).

The logits pass through memory three times where the eager way reads or writes them seven times.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sdfast.losses.linear_chunks import chunked_linear_loss


def chunked_linear_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, row_weights: Tensor
) -> Tensor:
    """See `linear_cross_entropy`; the sum alone."""

    def row_loss(rows: slice, logits: Tensor, gradient: bool) -> Tensor:
        target, share = labels[rows, None], row_weights[rows, None].to(logits.dtype)
        torch.ops.aten._log_softmax.out(logits, 1, False, out=logits)
        loss = -(logits.gather(1, target) * share).sum()
        if gradient:
            logits.exp_().mul_(share).scatter_add_(1, target, -share)
        return loss

    return chunked_linear_loss(hidden, weight, bias, row_loss)
