"""The compiled CPU kernel (csrc/cpu/attention_op.cpp): all sequences at once, nothing permuted or padded.

It takes float32 and bfloat16, and computes in float32.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sdfast.ops import native
from sdfast.ops.attention.groups import Groups
from sdfast.ops.registry import Use

_LEAST = torch.iinfo(torch.int64).min


def why_not_native(use: Use) -> str | None:
    """None when it can be used, else the reason."""
    if use.device != "cpu" or use.dtype not in (torch.float32, torch.bfloat16):
        given = str(use.dtype).removeprefix("torch.")
        return f"it is for float32 and bfloat16 on the CPU, not for {given} on {use.device}"
    return native.why_not_operator("attention_forward", _register_fakes, last="seed")


@functools.cache
def _register_fakes() -> None:
    """Once a process: torch 2.11 refuses it a second time."""
    torch.library.register_fake("sdfast::attention_forward", _fake_forward)
    torch.library.register_fake("sdfast::attention_backward", _fake_backward)


def native_attention(first: Tensor, second: Tensor | None, groups: Groups, dropout: float = 0.0) -> Tensor:
    """Attention as `attend` and `attend_across` specify it.

    Args:
        first: [T, 3, H, d], queries, keys and values of all tokens; or with `second` the queries [Tq, H, d].
        second: [Tk, 2, H, d], keys and values; or None.
        groups: the sequences.
        dropout: probability of a weight to be dropped; `mask.mask` has the mask, torch's generator draws its seed.

    Returns:
        [T, H, d].
    """
    # The kernel reads rows of any distance, but the values of a head have to be neighbours.
    dense = [each if each is None or each.stride(-1) == 1 else each.contiguous() for each in (first, second)]
    return _Native.apply(*dense, groups.bounds, dropout)


class _Native(torch.autograd.Function):
    """The gradients of queries, keys and values are written into one matrix, as they came in."""

    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor | None, bounds: Tensor, dropout: float) -> Tensor:
        q, k, v = _unpacked(first, second)
        ctx.further = (q.shape[-1] ** -0.5, dropout, _drawn() if dropout else 0)
        out, lse = torch.ops.sdfast.attention_forward(q, k, v, bounds, *ctx.further)
        ctx.save_for_backward(first, second, bounds, out, lse)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        first, second, bounds, out, lse = ctx.saved_tensors
        grad_first = first.new_empty(first.shape)
        grad_second = None if second is None else second.new_empty(second.shape)
        q, k, v = _unpacked(first, second)
        grad, grads = grad_outputs[0].contiguous(), _unpacked(grad_first, grad_second)
        torch.ops.sdfast.attention_backward(grad, q, k, v, out, lse, bounds, *ctx.further, *grads)
        return grad_first, grad_second, None, None


def _drawn() -> int:
    """64 random bits of torch's generator of the CPU; 0 where tensors are fake and have no number."""
    drawn = torch.empty((), dtype=torch.int64).random_(_LEAST, None)
    return int(drawn) if type(drawn) is Tensor else 0


def _unpacked(first: Tensor, second: Tensor | None) -> tuple[Tensor, ...]:
    """Queries, keys and values [T, H, d], from [T, 3, H, d], or from [Tq, H, d] and [Tk, 2, H, d]."""
    return first.unbind(1) if second is None else (first, *second.unbind(1))


def _fake_forward(q: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty((q.shape[1], q.shape[0]), dtype=torch.float32)


def _fake_backward(*_: Any) -> None:
    """Only writes into the gradients that it is given."""


def forward_flops(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, *_: Any, **more: Any) -> int:
    """Both products of all sequences.

    Raises:
        RuntimeError: the bounds are fake, so that nobody knows the lengths.
    """
    if type(bounds) is not Tensor:
        raise RuntimeError("the compiled attention has no FLOPs under fake tensors: count with another backend")
    queries, keys = (bounds[:, last] - bounds[:, last - 1] for last in (1, 3))
    return 2 * 2 * int((queries * keys).sum()) * q.shape[1] * q.shape[2]


def backward_flops(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *others: Any, **more: Any) -> int:
    """Twice the forward pass; `others` are the output, its normalisers and the bounds."""
    return 2 * forward_flops(q, k, v, others[2])
