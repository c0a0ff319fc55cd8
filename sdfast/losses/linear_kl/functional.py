"""The public function: checks its arguments and chooses the way to evaluate it."""

from __future__ import annotations

import torch
from torch import Tensor

from sdfast.losses.linear_chunks import is_worth_it
from sdfast.losses.linear_kl.chunked import chunked_linear_kl
from sdfast.losses.linear_kl.head import Head
from sdfast.losses.linear_kl.reference import reference_linear_kl

_BACKENDS = {"reference": reference_linear_kl, "chunked": chunked_linear_kl}


def linear_kl(
    hidden: Tensor,
    weight: Tensor,
    teacher_hidden: Tensor,
    teacher_weight: Tensor,
    bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    *,
    row_weights: Tensor | float | None = None,
    backend: str = "auto",
) -> Tensor:
    """Weighted sum of the rows' divergences: sum_i w_i KL(p_i || q_i), p the teacher's prediction, q the student's.

    q_i = softmax(h_i W^T + b), p_i = softmax(h'_i W'^T + b'). Without `row_weights` it is the mean over the rows; 0
    when there are none. Under autocast the products are in its dtype, and the sums over words and rows in float32.

    Args:
        hidden: float [M, D].
        weight: float [V, D].
        teacher_hidden: float [M, E]; nothing of the teacher gets a gradient.
        teacher_weight: float [V, E].
        bias, teacher_bias: float [V], or None.
        row_weights: float [M], or one number for all rows, without gradient; None for 1 / M.
        backend: ``"reference"``, ``"chunked"``, or ``"auto"``: chunked, except in the compiler and for
            few logits on a CPU.

    Returns:
        0-D, float32 or float64.

    Raises:
        ValueError: an argument that does not fit.
    """
    student, teacher = Head(hidden, weight, bias), Head(teacher_hidden, teacher_weight, teacher_bias)
    _check(student, "")
    _check(teacher, "teacher_")
    if len(teacher_hidden) != len(hidden) or len(teacher_weight) != len(weight):
        there = [len(teacher_hidden), len(teacher_weight)]
        raise ValueError(f"the teacher should predict {[len(hidden), len(weight)]} (rows, words), not {there}")
    rows = len(hidden)
    if row_weights is None:
        row_weights = 1 / max(1, rows)
    if not isinstance(row_weights, Tensor):
        dtype = torch.promote_types(hidden.dtype, torch.float32)
        row_weights = torch.full((rows,), row_weights, dtype=dtype, device=hidden.device)
    if row_weights.shape != (rows,) or row_weights.requires_grad:
        raise ValueError(f"row_weights should have shape [{rows}] and no gradient, not {list(row_weights.shape)}")
    if backend == "auto":
        backend = "chunked" if is_worth_it(hidden, weight) else "reference"
    if backend not in _BACKENDS:
        raise ValueError(f"backend should be one of auto, {', '.join(_BACKENDS)}, not {backend!r}")
    return _BACKENDS[backend](student, teacher, row_weights)


def _check(head: Head, prefix: str) -> None:
    hidden, weight, bias = head
    if hidden.dim() != 2 or not hidden.is_floating_point():
        raise ValueError(f"{prefix}hidden should be float [M, D], not {hidden.dtype} {list(hidden.shape)}")
    if weight.dim() != 2 or weight.shape[1] != hidden.shape[1]:
        raise ValueError(f"{prefix}weight should have shape [V, {hidden.shape[1]}], not {list(weight.shape)}")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"{prefix}bias should have shape [{weight.shape[0]}], not {list(bias.shape)}")
