"""What the compiled and the Triton backend share: one operator that returns the parts and both gradients.

Both operators have the signature of ``sdfast::mae_distill`` (csrc/cpu/mae_distill_op.cpp). The gradients are made in
the forward pass for a grad_output of 1; the backward pass multiplies by the real one without reading it from a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sdfast.losses.mae_distill.arguments import Arguments
from sdfast.losses.mae_distill.output import MaeDistillOutput

Operator = Callable[..., tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]

SCHEMA = (
    "(Tensor? pred, Tensor? images, Tensor? mask, Tensor? mask_ids, Tensor? student, Tensor? teacher, Tensor? rows, "
    "Tensor? teacher_scale, float[] mean, float[] std, int patch_size, bool norm_pix, float mae_weight, "
    "float distill_weight, bool distill_mean, bool want_grad_pred, bool want_grad_student) -> "
    "(Tensor loss, Tensor mae, Tensor distill, Tensor grad_pred, Tensor grad_student)"
)
PRED, STUDENT = 0, 4  # positions of the two differentiable operands
OPERANDS = 17


def call_operator(operator: Operator, a: Arguments) -> MaeDistillOutput:
    """Evaluate through ``operator``, with gradients when they are wanted.

    Eager calls go through an autograd.Function, a third of the host time of the operator's own registration;
    compiled ones through that registration, which the compiler sees through.
    """
    operands = operands_of(a)
    if torch.compiler.is_compiling() or not any(operands[-2:]):
        loss, mae, distill, _, _ = operator(*operands)
    else:
        loss, mae, distill = _Fused.apply(operator, *operands)
    return MaeDistillOutput(loss, mae, distill)


def operands_of(a: Arguments) -> tuple[Any, ...]:
    """The operator's operands; the last two say which gradients are wanted."""
    grad = torch.is_grad_enabled()
    return (
        a.pred,
        a.images,
        a.mask if a.mask is None or a.mask.dtype == torch.bool else a.mask != 0,
        a.mask_ids if a.mask_ids is None else a.mask_ids.long(),
        a.student,
        a.teacher,
        a.rows if a.rows is None else a.rows.long(),
        a.teacher_scale,
        list(a.mean or ()),
        list(a.std or ()),
        a.patch_size,
        a.norm_pix,
        a.mae_weight,
        a.distill_weight,
        a.distill_mean,
        grad and a.pred is not None and a.pred.requires_grad,
        grad and a.student is not None and a.student.requires_grad,
    )


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, operator: Operator, *operands: Any) -> tuple[Tensor, Tensor, Tensor]:
        loss, mae, distill, grad_pred, grad_student = operator(*operands)
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(mae, distill)
        ctx.save_for_backward(grad_pred, grad_student)
        return loss, mae, distill

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
        return (None, *_operand_gradients(ctx, grad_outputs[0], 1))


def register_autograd(name: str) -> None:
    """Give the operator ``name`` its own autograd formula (for the compiler and for direct calls)."""
    torch.library.register_autograd(name, _operator_backward, setup_context=_save_gradients)


def _save_gradients(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(output[3], output[4])


def _operator_backward(ctx: Any, *grad_outputs: Tensor | None) -> tuple[Tensor | None, ...]:
    return _operand_gradients(ctx, grad_outputs[0], 0)


def _operand_gradients(ctx: Any, grad_output: Tensor | None, shift: int) -> tuple[Tensor | None, ...]:
    """The gradients of the operands; ``shift`` is the number of inputs before them in ``ctx.needs_input_grad``."""
    gradients: list[Tensor | None] = [None] * OPERANDS
    if grad_output is None:
        return tuple(gradients)
    traced = type(grad_output) is not Tensor or torch.compiler.is_compiling()
    if torch.is_grad_enabled() and not traced:
        raise RuntimeError("mae_distill_loss has no second derivative here: use backend='reference' for create_graph")
    owned = not (traced or _graph_is_kept() or getattr(ctx, "gave_gradients_away", False))
    for position, gradient in zip((PRED, STUDENT), ctx.saved_tensors, strict=True):
        if ctx.needs_input_grad[position + shift]:
            gradients[position] = gradient * grad_output if traced else _scaled(gradient, grad_output, owned)
    ctx.gave_gradients_away = True
    return tuple(gradients)


def _scaled(gradient: Tensor, grad_output: Tensor, owned: bool) -> Tensor:
    """``gradient * grad_output``; in place when ``owned``: nobody else holds the tensor or will ask for it again.

    On the CPU the factor is looked at (that is no synchronisation there), and a factor of 1 costs nothing.
    """
    if grad_output.device.type == "cpu" and grad_output.item() == 1.0:
        return gradient
    return gradient.mul_(grad_output) if owned else gradient * grad_output


def _graph_is_kept() -> bool:
    """Whether the running backward pass keeps the graph (``retain_graph``); True when torch does not say."""
    ask = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return True if ask is None else bool(ask())


def empty_outputs(
    pred: Tensor | None,
    images: Tensor | None,
    mask: Tensor | None,
    mask_ids: Tensor | None,
    student: Tensor | None,
    teacher: Tensor | None,
    rows: Tensor | None,
    teacher_scale: Tensor | None,
    mean: list[float],
    std: list[float],
    patch_size: int,
    norm_pix: bool,
    mae_weight: float,
    distill_weight: float,
    distill_mean: bool,
    want_grad_pred: bool,
    want_grad_student: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Outputs of the right shapes and dtypes with no values: the operators' fake implementation."""
    like = pred if pred is not None else student
    assert like is not None
    wide = any(t is not None and t.dtype == torch.float64 for t in (pred, images, student, teacher))
    dtype = torch.float64 if wide else torch.float32
    loss, mae, distill = (like.new_empty((), dtype=dtype) for _ in range(3))
    grad_pred = pred.new_empty(pred.shape) if pred is not None and want_grad_pred else like.new_empty((0,))
    grad_student = (
        student.new_empty(student.shape) if student is not None and want_grad_student else like.new_empty((0,))
    )
    return loss, mae, distill, grad_pred, grad_student
