"""Divergence of two linear layers' predictions, which are never there all at once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sdfast.ops.linear_chunks import Head, backend_for, chunked_linear_loss, operands, product, weights_of_rows
from sdfast.ops.registry import Backend, Op, add


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
    student.check()
    teacher.check("teacher_")
    if len(teacher_hidden) != len(hidden) or len(teacher_weight) != len(weight):
        there = [len(teacher_hidden), len(teacher_weight)]
        raise ValueError(f"the teacher should predict {[len(hidden), len(weight)]} (rows, words), not {there}")
    weights = weights_of_rows(row_weights, hidden)
    return _ROW.backends[backend_for(_ROW, backend, student)].function(student, teacher, weights)


def reference_linear_kl(student: Head, teacher: Head, row_weights: Tensor) -> Tensor:
    """The specification: both linear layers, then the divergence of their softmax; row_weights [M]."""
    logits, targets = (F.linear(*head) for head in (student, teacher))
    dtype = torch.promote_types(logits.dtype, torch.float32)
    log_q, log_p = (F.log_softmax(each.to(dtype), dim=1) for each in (logits, targets.detach()))
    return (F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=1) * row_weights).sum()


def chunked_linear_kl(student: Head, teacher: Head, row_weights: Tensor) -> Tensor:
    """Some rows of both layers at a time, whose logits are there together."""
    theirs_bias = None if teacher.bias is None else teacher.bias.detach()
    hidden, weight, bias = operands(Head(teacher.hidden.detach(), teacher.weight.detach(), theirs_bias))

    def row_loss(rows: slice, logits: Tensor, gradient: bool) -> Tensor:
        share = row_weights[rows, None].to(logits.dtype)
        theirs = product(hidden[rows], weight, bias).to(logits.dtype)
        for each in (logits, theirs):
            torch.ops.aten._log_softmax.out(each, 1, False, out=each)
        p = theirs.exp()
        loss = (theirs.sub_(logits).mul_(p).sum(dim=1, keepdim=True) * share).sum()
        if gradient:
            logits.exp_().sub_(p).mul_(share)
        return loss

    return chunked_linear_loss(student, row_loss)


_ROW = add(
    Op(
        "linear_kl",
        {"reference": Backend(reference_linear_kl), "chunked": Backend(chunked_linear_kl)},
        preferences={},
        otherwise="chunked",
    )
)
