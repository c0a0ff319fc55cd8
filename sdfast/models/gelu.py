"""GELU (exact, by the normal distribution) with its slope from the same exponential: float32 on the CPU."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def gelu(x: Tensor) -> Tensor:
    """x P(x), P being the distribution of the standard normal.

    Where a gradient will be asked for in float32 on a CPU, the compiled core keeps the slope in place of the input, so
    that the backward pass is one product (csrc/cpu/gelu.h); elsewhere `torch.nn.functional.gelu`.
    """
    wanted = torch.is_grad_enabled() and x.requires_grad
    if (
        wanted
        and x.device.type == "cpu"
        and x.dtype == torch.float32
        and not torch.compiler.is_compiling()
        and _ready()
    ):
        return _Gelu.apply(x)
    return F.gelu(x)


@functools.cache
def _ready() -> bool:
    from sdfast import _native

    return _native.available() and hasattr(torch.ops.sdfast, "gelu")


class _Gelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y, slope = torch.ops.sdfast.gelu(x)
        ctx.save_for_backward(slope)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (slope,) = ctx.saved_tensors
        return grad * slope
