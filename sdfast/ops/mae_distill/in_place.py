"""The reference's arithmetic with the gradients made in the forward pass, over what is not needed any more.

What "auto" evaluates where no compiled backend is there. Autograd would keep the differences, and pass over them and
over their squares again; here each difference becomes its gradient where it lies. Loss and parts have the reference's
bits. There is no second derivative.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sdfast.ops.mae_distill.arguments import Arguments, MaeDistillOutput
from sdfast.ops.mae_distill.fused import Outputs, call_operator
from sdfast.ops.mae_distill.reference import normalised, target_patches, teacher_rows

Part = tuple[Tensor, Tensor]  # the unweighted loss and the weighted gradient, empty where it is not wanted


def in_place_mae_distill(a: Arguments) -> MaeDistillOutput:
    """Evaluate with torch's own operators, in eager mode."""
    return call_operator(lambda *_: _evaluate(a), a)


def _evaluate(a: Arguments) -> Outputs:
    nothing = torch.zeros((), dtype=a.compute_dtype, device=a.device), torch.empty(0, device=a.device)
    mae, grad_pred = _pixels(a) if a.pred is not None else nothing
    distill, grad_student = _representation(a) if a.student is not None else nothing
    return a.mae_weight * mae + a.distill_weight * distill, mae, distill, grad_pred, grad_student


def _pixels(a: Arguments) -> Part:
    assert a.pred is not None
    difference = a.pred.to(a.compute_dtype) - normalised(target_patches(a), a.norm_pix)  # [B, L, P]
    if a.mask is None:
        count: Tensor | int = max(difference.numel(), 1)
        mae = difference.square().sum() / count
        return mae, _gradient(difference, 2 * a.mae_weight / count, a.pred, a.want_grad_pred)
    masked = a.mask != 0  # [B, L]
    difference.masked_fill_(~masked.unsqueeze(-1), 0.0)  # predictions of visible patches may be anything
    count = masked.sum().clamp(min=1).to(difference.dtype)
    mae = difference.square().mean(dim=-1).sum() / count
    return mae, _gradient(difference, 2 * a.mae_weight / max(difference.shape[-1], 1) / count, a.pred, a.want_grad_pred)


def _representation(a: Arguments) -> Part:
    assert a.student is not None
    difference = a.student.to(a.compute_dtype) - teacher_rows(a)
    count = max(a.student.numel() if a.distill_mean else a.student.shape[0], 1)
    loss = difference.square().sum() / count
    return loss, _gradient(difference, 2 * a.distill_weight / count, a.student, a.want_grad_student)


def _gradient(difference: Tensor, factor: Tensor | float, operand: Tensor, want: bool) -> Tensor:
    return difference.mul_(factor).to(operand.dtype) if want else difference.new_empty(0)
