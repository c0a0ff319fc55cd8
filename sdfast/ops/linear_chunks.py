"""A loss of a linear layer's outputs, some rows at a time: their logits become their gradient where they lie.

Both products with that gradient follow at once, so that the logits of all rows are never there together, and nothing
is kept for the backward pass but the gradients themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sdfast.ops.linear.fp32_matmul import mm, onednn, why_not_onednn
from sdfast.ops.registry import Op, choose

_CHUNK_BYTES = {"cpu": 16 * 2**20, "cuda": 256 * 2**20}  # of logits; more rows make the products no faster

_FEW = 0.25  # of a chunk: so few logits are computed faster as they are, on a CPU, than overwritten by their gradient


class Head(NamedTuple):
    """A linear layer and what it is given: predictions that have not been made yet."""

    hidden: Tensor  # [M, D]
    weight: Tensor  # [V, D]
    bias: Tensor | None  # [V]

    def check(self, prefix: str = "") -> None:
        """Refuse what does not fit.

        Raises:
            ValueError: a dtype or shape; the message names the argument, with the prefix before it.
        """
        hidden, weight, bias = self
        if hidden.dim() != 2 or not hidden.is_floating_point():
            raise ValueError(f"{prefix}hidden should be float [M, D], not {hidden.dtype} {list(hidden.shape)}")
        if weight.dim() != 2 or weight.shape[1] != hidden.shape[1]:
            raise ValueError(f"{prefix}weight should have shape [V, {hidden.shape[1]}], not {list(weight.shape)}")
        if bias is not None and bias.shape != weight.shape[:1]:
            raise ValueError(f"{prefix}bias should have shape [{weight.shape[0]}], not {list(bias.shape)}")


# The share of some rows in a loss that is a sum over rows: of which of all, their logits [c, V] in float32 or float64,
# and whether to overwrite these by the share's gradient with respect to them; 0-D, in the logits' dtype.
RowLoss = Callable[[slice, Tensor, bool], Tensor]


def chunked_linear_loss(head: Head, row_loss: RowLoss) -> Tensor:
    """The sum of a loss of a linear layer's outputs over all rows; what `row_loss` holds gets no gradient.

    Returns:
        0-D, float32 or float64; differentiable once, with respect to hidden, weight and bias.
    """
    if torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in head):
        return _Chunked.apply(row_loss, *head)
    return _evaluate(head, row_loss, (False, False, False))[0]


def weights_of_rows(given: Tensor | float | None, hidden: Tensor) -> Tensor:
    """[M], the weight of each of hidden's rows: as given, the same number for all, or 1 / M.

    Raises:
        ValueError: a tensor of another shape, or with a gradient.
    """
    rows = len(hidden)
    if given is None:
        given = 1 / max(1, rows)
    if not isinstance(given, Tensor):
        given = torch.full((rows,), given, dtype=wide(hidden.dtype), device=hidden.device)
    if given.shape != (rows,) or given.requires_grad:
        raise ValueError(f"row_weights should have shape [{rows}] and no gradient, not {list(given.shape)}")
    return given


def backend_for(op: Op, name: str, head: Head) -> str:
    """The backend to use: for `auto` chunks where they are faster, or at least spare memory that counts.

    Raises:
        ValueError: an unknown name.
    """
    if name == "auto" and not _is_worth_it(head.hidden, head.weight):
        name = "reference"
    return choose(op.name, name, head.hidden.device.type)


def _is_worth_it(hidden: Tensor, weight: Tensor) -> bool:
    if torch.compiler.is_compiling():
        return False
    device = hidden.device.type
    few = len(hidden) * len(weight) * hidden.element_size() < _FEW * _CHUNK_BYTES["cpu"]
    # in half precision it is also the more exact one
    return device != "cpu" or not few or hidden.element_size() < 4 or torch.is_autocast_enabled(device)


def rows_of_a_chunk(rows: int, vocabulary: int, dtype: torch.dtype, device: str) -> int:
    """Nearly equal chunks of at most `_CHUNK_BYTES`, and at least 16 rows."""
    most = max(16, _CHUNK_BYTES.get(device, _CHUNK_BYTES["cpu"]) // (vocabulary * wide(dtype).itemsize))
    return max(1, -(-rows // -(-rows // most))) if rows else 1


def operands(head: Head) -> Head:
    """What a linear layer multiplies, in autocast's dtype where that acts.

    float32 in float16's place: the gradients are made here and now, before the scale of the loss lifts them into
    float16's range.
    """
    hidden, weight, bias = head
    device = hidden.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype
    dtype = torch.float32 if dtype == torch.float16 else dtype
    return Head(hidden.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype))


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x weight^T + bias; with AVX-512 oneDNN's kernel is twice as fast as MKL's with a bias (`sdfast.ops.linear`)."""
    if x.device.type == "cpu" and x.dtype == torch.float32 and why_not_onednn() is None:
        return onednn(x, weight.t(), bias)
    return mm(x, weight.t(), bias)


def wide(dtype: torch.dtype) -> torch.dtype:
    """What logits are exponentiated in."""
    return torch.promote_types(dtype, torch.float32)


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, row_loss: RowLoss, hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        loss, *grads = _evaluate(Head(hidden, weight, bias), row_loss, ctx.needs_input_grad[1:])
        ctx.save_for_backward(*grads)
        ctx.dtypes = [None if each is None else each.dtype for each in (hidden, weight, bias)]
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        grad = grad_outputs[0]
        grads = ctx.saved_tensors
        if not (grad.device.type == "cpu" and float(grad) == 1.0):
            grads = [None if each is None else each * grad.to(each.dtype) for each in grads]
        return None, *(None if each is None else each.to(dtype) for each, dtype in zip(grads, ctx.dtypes, strict=True))


def _evaluate(
    head: Head, row_loss: RowLoss, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """The sum, and the gradients of hidden, weight and bias as far as they are wanted."""
    hidden, weight, bias = head
    device = hidden.device.type
    vectors, matrix, added = operands(head)
    with torch.autocast(device, enabled=False):
        loss = hidden.new_zeros((), dtype=wide(vectors.dtype))
        grad_hidden = torch.empty_like(vectors) if wanted[0] else None
        # Sums over the chunks are kept in the parameters' own precision.
        grad_weight = torch.zeros_like(weight, dtype=_kept(weight)) if wanted[1] else None
        grad_bias = torch.zeros_like(bias, dtype=_kept(bias)) if wanted[2] and bias is not None else None
        step = rows_of_a_chunk(len(hidden), len(weight), vectors.dtype, device)
        for first in range(0, len(hidden), step):
            rows = slice(first, first + step)
            part = vectors[rows]
            logits = product(part, matrix, added).to(loss.dtype)
            loss += row_loss(rows, logits, any(wanted))
            if not any(wanted):
                continue
            if grad_bias is not None:
                grad_bias += logits.sum(dim=0)
            narrow = logits.to(vectors.dtype)
            if grad_hidden is not None:
                grad_hidden[rows] = product(narrow, matrix.t(), None)
            if grad_weight is not None:
                if vectors.dtype == grad_weight.dtype:
                    grad_weight.addmm_(narrow.t(), part)
                else:
                    grad_weight += mm(narrow.t(), part)
    return loss, grad_hidden, grad_weight, grad_bias


def _kept(parameter: Tensor) -> torch.dtype:
    """What sums of its gradient are kept in: its own precision, and float32 in float16's place."""
    return torch.float32 if parameter.dtype == torch.float16 else parameter.dtype
