"""The compiled CPU kernel (csrc/cpu/attention_op.cpp): float32, all sequences at once, nothing permuted or padded."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from sdfast.models.attention.groups import Groups


def why_not_native(device: torch.device, dtype: torch.dtype) -> str | None:
    """None when it can be used, else the reason."""
    if device.type != "cpu" or dtype != torch.float32:
        return f"it is for float32 on the CPU, not for {str(dtype).removeprefix('torch.')} on {device.type}"
    return _why_not_loaded()


@functools.cache
def _why_not_loaded() -> str | None:
    try:
        from sdfast import _native

        _native.load()
    except (ImportError, OSError, RuntimeError) as error:
        return str(error)
    if not hasattr(torch.ops.sdfast, "attention_forward"):
        return "the compiled core is older than this Python package: build it again"
    _register_fakes()
    return None


@functools.cache
def _register_fakes() -> None:
    """Once a process: torch 2.11 refuses it a second time."""
    torch.library.register_fake("sdfast::attention_forward", _fake_forward)
    torch.library.register_fake("sdfast::attention_backward", _fake_backward)


def native_self_attention(qkv: Tensor, groups: Groups) -> Tensor:
    """See `attend` for the arguments."""
    return _Native.apply(_side_by_side(qkv), None, groups.bounds)


def native_attention_across(q: Tensor, kv: Tensor, groups: Groups) -> Tensor:
    """See `attend_across` for the arguments."""
    return _Native.apply(_side_by_side(q), _side_by_side(kv), groups.bounds)


class _Native(torch.autograd.Function):
    """The gradients of queries, keys and values are written into one matrix, as they came in."""

    @staticmethod
    def forward(ctx: Any, first: Tensor, second: Tensor | None, bounds: Tensor) -> Tensor:
        q, k, v = _unpacked(first, second)
        out, lse = torch.ops.sdfast.attention_forward(q, k, v, bounds, q.shape[-1] ** -0.5)
        ctx.save_for_backward(first, second, bounds, out, lse)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        first, second, bounds, out, lse = ctx.saved_tensors
        grad_first = first.new_empty(first.shape)
        grad_second = None if second is None else second.new_empty(second.shape)
        q, k, v = _unpacked(first, second)
        torch.ops.sdfast.attention_backward(
            grad_outputs[0].contiguous(),
            q,
            k,
            v,
            out,
            lse,
            bounds,
            q.shape[-1] ** -0.5,
            *_unpacked(grad_first, grad_second),
        )
        return grad_first, grad_second, None


def _side_by_side(heads: Tensor) -> Tensor:
    """The kernel reads rows of any distance, but the values of a head have to be neighbours."""
    return heads if heads.stride(-1) == 1 else heads.contiguous()


def _unpacked(first: Tensor, second: Tensor | None) -> tuple[Tensor, ...]:
    """Queries, keys and values [T, H, d], from [T, 3, H, d], or from [Tq, H, d] and [Tk, 2, H, d]."""
    return first.unbind(1) if second is None else (first, *second.unbind(1))


def _fake_forward(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty((q.shape[1], q.shape[0]))


def _fake_backward(*_: Any) -> None:
    """Only writes into the gradients that it is given."""
