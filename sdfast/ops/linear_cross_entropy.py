"""Cross-entropy of a linear layer's outputs, which are never there all at once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sdfast.ops.linear_chunks import Head, backend_for, chunked_linear_loss, weights_of_rows
from sdfast.ops.registry import Backend, Op, add


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    labels: Tensor,
    bias: Tensor | None = None,
    *,
    row_weights: Tensor | float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Weighted sum of the rows' cross-entropies: sum_i w_i (log sum_v exp(z_iv) - z_i,label(i)), z = h W^T + b.

    Without `row_weights` it is the mean over the rows; 0 when there are none. Under autocast the products are in its
    dtype, and the sums over words and rows in float32.

    Args:
        hidden: float [M, D].
        weight: float [V, D].
        labels: int64 [M], in [0, V).
        bias: float [V], or None.
        row_weights: float [M], or one number for all rows, without gradient; None for 1 / M.
        backend: ``"reference"``, ``"chunked"``, or ``"auto"``: chunked, except in the compiler and for
            few logits on a CPU.

    Returns:
        0-D, float32 or float64.

    Raises:
        TypeError, ValueError: an argument that does not fit.
    """
    head = Head(hidden, weight, bias)
    head.check()
    if labels.dtype != torch.int64:
        raise TypeError(f"labels should be torch.int64, not {labels.dtype}")
    if labels.shape != hidden.shape[:1]:
        raise ValueError(f"labels should have shape [{len(hidden)}], not {list(labels.shape)}")
    weights = weights_of_rows(row_weights, hidden)
    return _ROW.backends[backend_for(_ROW, backend, head)].function(head, labels, weights)


def reference_linear_cross_entropy(head: Head, labels: Tensor, row_weights: Tensor) -> Tensor:
    """The specification: the linear layer, then the cross-entropy; labels [M], row_weights [M]."""
    logits = F.linear(*head)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return (F.cross_entropy(logits, labels, reduction="none") * row_weights).sum()


def chunked_linear_cross_entropy(head: Head, labels: Tensor, row_weights: Tensor) -> Tensor:
    """Some rows at a time: the logits pass through memory three times where the eager way has them seven times."""

    def row_loss(rows: slice, logits: Tensor, gradient: bool) -> Tensor:
        target, share = labels[rows, None], row_weights[rows, None].to(logits.dtype)
        torch.ops.aten._log_softmax.out(logits, 1, False, out=logits)
        loss = -(logits.gather(1, target) * share).sum()
        if gradient:
            logits.exp_().mul_(share).scatter_add_(1, target, -share)
        return loss

    return chunked_linear_loss(head, row_loss)


_ROW = add(
    Op(
        "linear_cross_entropy",
        {"reference": Backend(reference_linear_cross_entropy), "chunked": Backend(chunked_linear_cross_entropy)},
        preferences={},
        otherwise="chunked",
    )
)
