"""What a block calls: GELU, and the parting of queries, keys and values; each makes a bias's gradient on the way."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sdfast.ops.bias_gradients import reference
from sdfast.ops.registry import Backend, Op, Use, add


def gelu_with_bias(x: Tensor, bias: Tensor) -> Tensor:
    """Exact GELU of `linear(..., bias.detach())`; the bias gets its gradient here.

    Args:
        x: [T, N] in half precision, the bias already added.
        bias: [N] float32, whose value is not used.

    Returns:
        [T, N].
    """
    return _Gelu.apply(x, bias)


def apart_with_bias(qkv: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of a projection with `bias.detach()`; the bias gets its gradient here.

    Args:
        qkv: [T, 3, H, d] in half precision, the bias already added.
        bias: [3 * H * d] float32, whose value is not used.

    Returns:
        views [T, H, d].
    """
    return _Apart.apply(qkv, bias)


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return F.gelu(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor]:
        (x,) = ctx.saved_tensors
        return _gelu_backward(grad_outputs[0], x)


class _Apart(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        return qkv.unbind(1)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor]:
        return _join(*grad_outputs)


def _gelu_backward(grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ops.sdfast.gelu_backward_with_bias(grad, x)


def _join(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ops.sdfast.join_with_bias(q, k, v)


def _why_not(use: Use) -> str | None:
    return _why_not_registered() if use.device == "cuda" else f"they are for CUDA, not for {use.device}"


@functools.cache
def _why_not_registered() -> str | None:
    """Define both operators: to the compiler they are calls. None, or why there is none."""
    try:
        from sdfast.ops.bias_gradients.triton_kernels import launch_gelu_backward, launch_join
    except ImportError as error:
        return f"triton cannot be imported ({error})"

    for name, arguments, function, specification in (
        ("gelu_backward_with_bias", "Tensor grad, Tensor x", launch_gelu_backward, reference.gelu_backward),
        ("join_with_bias", "Tensor q, Tensor k, Tensor v", launch_join, reference.join),
    ):
        schema = f"({arguments}) -> (Tensor, Tensor)"
        operator = torch.library.custom_op(f"sdfast::{name}", function, mutates_args=(), schema=schema)
        operator.register_fake(functools.partial(_dense, specification))
    return None


def _dense(function: Callable[..., tuple[Tensor, Tensor]], *operands: Tensor) -> tuple[Tensor, ...]:
    return tuple(each.contiguous() for each in function(*operands))


for _name, _specification, _operator in (
    ("gelu_backward_with_bias", reference.gelu_backward, _gelu_backward),
    ("join_with_bias", reference.join, _join),
):
    _backends = {"reference": Backend(_specification), "triton": Backend(_operator, _why_not)}
    add(Op(_name, _backends, preferences={"cuda": ("triton",)}))
