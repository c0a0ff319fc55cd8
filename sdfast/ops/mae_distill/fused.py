"""The compiled backend, and what it shares with the Triton one: an operator that returns the parts and both gradients.

Both operators have the signature of ``sdfast::mae_distill`` (csrc/cpu and csrc/cuda), which is that of `Arguments`.
The gradients are made in the forward pass for a grad_output of 1; the backward pass multiplies by the real one without
reading it from a GPU.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, get_type_hints

import torch
from torch import Tensor

from sdfast.ops import native
from sdfast.ops.mae_distill.arguments import Arguments, MaeDistillOutput, widest
from sdfast.ops.registry import Use

Outputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]  # loss, mae, distill and the two gradients
Operator = Callable[..., Outputs]

OPERATOR = "sdfast::mae_distill"
OPERANDS = tuple(name for name in Arguments._fields if name not in ("compute_dtype", "device"))
PRED, STUDENT = OPERANDS.index("pred"), OPERANDS.index("student")  # the two differentiable operands
_TYPES: dict[Any, tuple[Any, str]] = {  # of an operand: what it is for torch.library, and in a schema
    Tensor | None: (Tensor | None, "Tensor?"),
    float | Sequence[float] | None: (list[float], "float[]"),
    int: (int, "int"),
    bool: (bool, "bool"),
    float: (float, "float"),
}
_HINTS = get_type_hints(Arguments)
TYPES = {name: _TYPES[_HINTS[name]] for name in OPERANDS}
SCHEMA = (
    f"({', '.join(f'{schema} {name}' for name, (_, schema) in TYPES.items())}) -> "
    "(Tensor loss, Tensor mae, Tensor distill, Tensor grad_pred, Tensor grad_student)"
)


def native_mae_distill(a: Arguments) -> MaeDistillOutput:
    """Evaluate with the compiled operator in one pass over memory; gradients are made on the way."""
    return call_operator(torch.ops.sdfast.mae_distill.default, a)


def why_not_native(use: Use) -> str | None:
    """None when the compiled operator can be called on such a device, else the reason."""
    reason = native.why_not_operator("mae_distill", _register, cuda=use.device == "cuda")
    if reason is None and use.device not in ("cpu", "cuda"):
        return f"there is no compiled operator for {use.device}"
    return reason


@functools.cache
def _register() -> None:
    torch.library.register_fake(OPERATOR, lambda *operands: empty_outputs(Arguments(*operands)))
    register_autograd(OPERATOR)


def call_operator(operator: Operator, a: Arguments) -> MaeDistillOutput:
    """Evaluate through ``operator``, with gradients when they are wanted.

    Eager calls go through an autograd.Function, a third of the host time of the operator's own registration;
    compiled ones through that registration, which the compiler sees through.
    """
    operands = operands_of(a)
    if torch.compiler.is_compiling() or not (a.want_grad_pred or a.want_grad_student):
        loss, mae, distill, _, _ = operator(*operands)
    else:
        loss, mae, distill = _Fused.apply(operator, *operands)
    return MaeDistillOutput(loss, mae, distill)


def operands_of(a: Arguments) -> tuple[Any, ...]:
    """The operators' operands, out of checked arguments."""
    return a._replace(mean=list(a.mean or ()), std=list(a.std or ()))[: len(OPERANDS)]  # type: ignore[arg-type]


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

    def save(ctx: Any, inputs: tuple[Any, ...], output: Outputs) -> None:
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*output[3:])

    torch.library.register_autograd(name, lambda ctx, *grads: _operand_gradients(ctx, grads[0], 0), setup_context=save)


def _operand_gradients(ctx: Any, grad_output: Tensor | None, shift: int) -> tuple[Tensor | None, ...]:
    """The gradients of the operands; ``shift`` is the number of inputs before them in ``ctx.needs_input_grad``."""
    gradients: list[Tensor | None] = [None] * len(OPERANDS)
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


def empty_outputs(a: Arguments) -> Outputs:
    """Outputs of the right shapes and dtypes with no values."""
    like = a.pred if a.pred is not None else a.student
    assert like is not None
    dtype = widest(a.pred, a.images, a.student, a.teacher)
    loss, mae, distill = (like.new_empty((), dtype=dtype) for _ in range(3))
    grads = (
        like.new_empty((0,)) if of is None or not want else of.new_empty(of.shape)
        for of, want in ((a.pred, a.want_grad_pred), (a.student, a.want_grad_student))
    )
    return loss, mae, distill, *grads  # type: ignore[return-value]
