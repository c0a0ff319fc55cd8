"""What a block calls: GELU, and the parting of queries, keys and values; each makes a bias's gradient on the way.

GELU has a kernel for CPUs too, in the compiled core: under bf16 autocast, see `sdfast.ops.cpu_half`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sdfast.ops.bias_gradients import reference
from sdfast.ops.cpu_half import why_not_cpu_half
from sdfast.ops.registry import Backend, Op, Use, add


def gelu_with_bias(x: Tensor, bias: Tensor, half: bool = False) -> Tensor:
    """Exact GELU of `linear(..., bias.detach())`; the bias gets its gradient here.

    Args:
        x: [T, N] in half precision, the bias already added.
        bias: [N] float32, whose value is not used.
        half: whether on a CPU, in bfloat16.

    Returns:
        [T, N].
    """
    return _Gelu.apply(x, bias, half)


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
    def forward(ctx: Any, x: Tensor, bias: Tensor, half: bool) -> Tensor:
        ctx.save_for_backward(x)
        ctx.half = half
        return F.gelu(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        return (*(_half_gelu_backward if ctx.half else _gelu_backward)(grad_outputs[0], x), None)


class _Apart(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        return qkv.unbind(1)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor]:
        return _join(*grad_outputs)


def _gelu_backward(grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ops.sdfast.gelu_backward_with_bias(grad, x)


def _half_gelu_backward(grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.ops.sdfast.gelu_half_backward(grad, x)


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


def _why_not_half(use: Use) -> str | None:
    reason = why_not_cpu_half(use)
    if reason is None:
        _register_half()
    return reason


@functools.cache
def _register_half() -> None:
    """Once a process: torch 2.11 refuses it a second time."""
    torch.library.register_fake("sdfast::gelu_half_backward", functools.partial(_dense, reference.gelu_backward))


add(
    Op(
        "gelu_backward_with_bias",
        {
            "reference": Backend(reference.gelu_backward),
            "triton": Backend(_gelu_backward, _why_not),
            "half": Backend(_half_gelu_backward, _why_not_half),
        },
        preferences={"cuda": ("triton",), "cpu": ("half",)},
    )
)
add(
    Op(
        "join_with_bias",
        {"reference": Backend(reference.join), "triton": Backend(_join, _why_not)},
        preferences={"cuda": ("triton",)},
    )
)
