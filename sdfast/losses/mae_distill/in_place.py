"""The reference's arithmetic with the gradients made in the forward pass, over what is not needed any more.

What "auto" evaluates where no compiled backend is there. Autograd would keep the differences, and pass over them and
over their squares again; here each difference becomes its gradient where it lies. Loss and parts have the reference's
bits. There is no second derivative.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sdfast.losses.mae_distill.arguments import Arguments
from sdfast.losses.mae_distill.fused import call_operator
from sdfast.losses.mae_distill.output import MaeDistillOutput
from sdfast.losses.mae_distill.reference import normalised, target_patches, teacher_rows

Part = tuple[Tensor, Tensor]  # the unweighted loss and the weighted gradient, empty where it is not wanted


def in_place_mae_distill(a: Arguments) -> MaeDistillOutput:
    """Evaluate with torch's own operators, in eager mode."""
    return call_operator(lambda *operands: _evaluate(a, *operands[-2:]), a)


def _evaluate(a: Arguments, want_pred: bool, want_student: bool) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """See `sdfast.losses.mae_distill.fused.SCHEMA` for what is returned."""
    nothing = torch.zeros((), dtype=a.compute_dtype, device=a.device), torch.empty(0, device=a.device)
    mae, grad_pred = _pixels(a, want_pred) if a.pred is not None else nothing
    distill, grad_student = _representation(a, want_student) if a.student is not None else nothing
    return a.mae_weight * mae + a.distill_weight * distill, mae, distill, grad_pred, grad_student


def _pixels(a: Arguments, want: bool) -> Part:
    assert a.pred is not None
    difference = a.pred.to(a.compute_dtype) - normalised(target_patches(a), a.norm_pix)  # [B, L, P]
    if a.mask is None:
        count: Tensor | int = max(difference.numel(), 1)
        mae = difference.square().sum() / count
        return mae, _gradient(difference, 2 * a.mae_weight / count, a.pred, want)
    masked = a.mask != 0  # [B, L]
    difference.masked_fill_(~masked.unsqueeze(-1), 0.0)  # predictions of visible patches may be anything
    count = masked.sum().clamp(min=1).to(difference.dtype)
    mae = difference.square().mean(dim=-1).sum() / count
    return mae, _gradient(difference, 2 * a.mae_weight / max(difference.shape[-1], 1) / count, a.pred, want)


def _representation(a: Arguments, want: bool) -> Part:
    assert a.student is not None
    difference = a.student.to(a.compute_dtype) - teacher_rows(a)
    count = max(a.student.numel() if a.distill_mean else a.student.shape[0], 1)
    return difference.square().sum() / count, _gradient(difference, 2 * a.distill_weight / count, a.student, want)


def _gradient(difference: Tensor, factor: Tensor | float, operand: Tensor, want: bool) -> Tensor:
    return difference.mul_(factor).to(operand.dtype) if want else difference.new_empty(0)
