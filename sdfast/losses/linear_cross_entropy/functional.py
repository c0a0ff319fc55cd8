"""The public function: checks its arguments and chooses the way to evaluate it."""

from __future__ import annotations

import torch
from torch import Tensor

from sdfast.losses.linear_chunks import is_worth_it
from sdfast.losses.linear_cross_entropy.chunked import chunked_linear_cross_entropy
from sdfast.losses.linear_cross_entropy.reference import reference_linear_cross_entropy

_BACKENDS = {"reference": reference_linear_cross_entropy, "chunked": chunked_linear_cross_entropy}


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
    _check(hidden, weight, labels, bias)
    rows = len(hidden)
    if row_weights is None:
        row_weights = 1 / max(1, rows)
    if not isinstance(row_weights, Tensor):
        row_weights = torch.full((rows,), row_weights, dtype=_weight_dtype(hidden), device=hidden.device)
    if row_weights.shape != (rows,) or row_weights.requires_grad:
        raise ValueError(f"row_weights should have shape [{rows}] and no gradient, not {list(row_weights.shape)}")
    if backend == "auto":
        backend = "chunked" if is_worth_it(hidden, weight) else "reference"
    if backend not in _BACKENDS:
        raise ValueError(f"backend should be one of auto, {', '.join(_BACKENDS)}, not {backend!r}")
    return _BACKENDS[backend](hidden, weight, bias, labels, row_weights)


def _weight_dtype(hidden: Tensor) -> torch.dtype:
    return torch.promote_types(hidden.dtype, torch.float32)


def _check(hidden: Tensor, weight: Tensor, labels: Tensor, bias: Tensor | None) -> None:
    if hidden.dim() != 2 or not hidden.is_floating_point():
        raise ValueError(f"hidden should be float [M, D], not {hidden.dtype} {list(hidden.shape)}")
    if weight.dim() != 2 or weight.shape[1] != hidden.shape[1]:
        raise ValueError(f"weight should have shape [V, {hidden.shape[1]}], not {list(weight.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"bias should have shape [{weight.shape[0]}], not {list(bias.shape)}")
    if labels.dtype != torch.int64:
        raise TypeError(f"labels should be torch.int64, not {labels.dtype}")
    if labels.shape != hidden.shape[:1]:
        raise ValueError(f"labels should have shape [{len(hidden)}], not {list(labels.shape)}")
