"""Some rows at a time: their logits become their gradient where they lie, and both products with it follow at once.

So the logits of all rows are never there together, nothing is kept for the backward pass but the gradients themselves,
and the logits pass through memory three times where the eager way reads or writes them seven times.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_CHUNK_BYTES = {"cpu": 16 * 2**20, "cuda": 256 * 2**20}  # of logits; more rows make the products no faster


def chunked_linear_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, row_weights: Tensor
) -> Tensor:
    """See `linear_cross_entropy`; the sum alone."""
    wanted = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (hidden, weight, bias))
    if wanted:
        return _Chunked.apply(hidden, weight, bias, labels, row_weights)
    return _evaluate(hidden, weight, bias, labels, row_weights, (False, False, False))[0]


def rows_of_a_chunk(rows: int, vocabulary: int, dtype: torch.dtype, device: str) -> int:
    """Nearly equal chunks of at most `_CHUNK_BYTES`, and at least 16 rows."""
    most = max(16, _CHUNK_BYTES.get(device, _CHUNK_BYTES["cpu"]) // (vocabulary * _wide(dtype).itemsize))
    return max(1, -(-rows // -(-rows // most))) if rows else 1


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, row_weights: Tensor
    ) -> Tensor:
        loss, *grads = _evaluate(hidden, weight, bias, labels, row_weights, ctx.needs_input_grad[:3])
        ctx.save_for_backward(*grads)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        grad = grad_outputs[0]
        if grad.device.type == "cpu" and float(grad) == 1.0:
            return *ctx.saved_tensors, None, None
        return *(None if each is None else each * grad.to(each.dtype) for each in ctx.saved_tensors), None, None


def _evaluate(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    labels: Tensor,
    row_weights: Tensor,
    wanted: tuple[bool, bool, bool],
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """The sum, and the gradients of hidden, weight and bias as far as they are wanted."""
    device, dtype = hidden.device.type, hidden.dtype
    product = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else dtype
    with torch.autocast(device, enabled=False):
        vectors, matrix = hidden.to(product), weight.to(product)
        added = None if bias is None else bias.to(product)
        loss = hidden.new_zeros((), dtype=_wide(product))
        grad_hidden = torch.empty_like(vectors) if wanted[0] else None
        # Sums over the chunks are kept in the parameters' own precision.
        grad_weight = torch.zeros_like(weight) if wanted[1] else None
        grad_bias = torch.zeros_like(bias) if wanted[2] and bias is not None else None
        step = rows_of_a_chunk(len(hidden), len(weight), product, device)
        for first in range(0, len(hidden), step):
            rows = slice(first, first + step)
            part, target, share = vectors[rows], labels[rows, None], row_weights[rows, None].to(loss.dtype)
            wide = _product(part, matrix, added).to(loss.dtype)
            torch.ops.aten._log_softmax.out(wide, 1, False, out=wide)
            loss -= (wide.gather(1, target) * share).sum()
            if not any(wanted):
                continue
            grad = wide.exp_().mul_(share).scatter_add_(1, target, -share)
            if grad_bias is not None:
                grad_bias += grad.sum(dim=0)
            narrow = grad.to(product)
            if grad_hidden is not None:
                grad_hidden[rows] = _product(narrow, matrix.t(), None)
            if grad_weight is not None:
                if product == weight.dtype:
                    grad_weight.addmm_(narrow.t(), part)
                else:
                    grad_weight += narrow.t() @ part
    return loss, None if grad_hidden is None else grad_hidden.to(dtype), grad_weight, grad_bias


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x weight^T + bias; oneDNN's kernel is twice as fast as MKL's with a bias (as in `sdfast.models.linear`)."""
    if x.device.type == "cpu" and x.dtype == torch.float32 and _onednn_is_there():
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return x @ weight.t() if bias is None else torch.addmm(bias, x, weight.t())


@functools.cache
def _onednn_is_there() -> bool:
    if not torch.backends.mkldnn.is_available() or "AVX" not in torch.backends.cpu.get_cpu_capability():
        return False
    return hasattr(torch.ops.mkldnn, "_linear_pointwise")


def _wide(dtype: torch.dtype) -> torch.dtype:
    """What logits are exponentiated in."""
    return torch.promote_types(dtype, torch.float32)
