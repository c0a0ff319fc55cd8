"""GELU (exact, by the normal distribution) with its slope from the same exponential: float32 on the CPU."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from sdfast.ops import native
from sdfast.ops.registry import Backend, Op, Use, add, choose


def gelu(x: Tensor) -> Tensor:
    """x P(x), P being the distribution of the standard normal.

    Where a gradient will be asked for in float32 on a CPU, the compiled core keeps the slope in place of the input, so
    that the backward pass is one product (csrc/cpu/gelu.h); elsewhere `torch.nn.functional.gelu`.
    """
    if torch.is_grad_enabled() and x.requires_grad and not torch.compiler.is_compiling():
        return _ROW.backends[choose("gelu", "auto", x.device.type, x.dtype)].function(x)
    return F.gelu(x)


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y, slope = torch.ops.sdfast.gelu(x)
        ctx.save_for_backward(slope)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (slope,) = ctx.saved_tensors
        return grad * slope


def _why_not_native(use: Use) -> str | None:
    if use.device != "cpu" or use.dtype != torch.float32:
        return "it is for float32 on the CPU"
    return native.why_not_operator("gelu")


_ROW = add(
    Op(
        "gelu",
        {"reference": Backend(F.gelu), "native": Backend(_Gelu.apply, _why_not_native)},
        preferences={"cpu": ("native",)},
    )
)
