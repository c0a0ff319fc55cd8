"""What a block calls: GELU, and the parting of queries, keys and values; each makes a bias's gradient on the way."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sdfast.losses.mae_distill.dispatch import constant_to_the_compiler
from sdfast.models.bias_gradients.triton_backend import launch_gelu_backward, launch_join


@constant_to_the_compiler
def why_not(device_type: str) -> str | None:
    """None where the kernels can be used, else the reason."""
    if device_type != "cuda":
        return f"they are for CUDA, not for {device_type}"
    return _why_not_registered()


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
        return torch.ops.sdfast.gelu_backward_with_bias(grad_outputs[0], x)


class _Apart(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        return qkv.unbind(1)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ops.sdfast.join_with_bias(*grad_outputs)


@functools.cache
def _why_not_registered() -> str | None:
    """Define both operators: to the compiler they are calls. None, or why there is none."""
    try:
        from sdfast.models.bias_gradients.triton_kernels import gelu_backward_kernel, join_kernel
    except ImportError as error:
        return f"triton cannot be imported ({error})"

    def gelu_backward(grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return launch_gelu_backward(gelu_backward_kernel, grad, x)

    def join(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        return launch_join(join_kernel, q, k, v)

    def like_x(grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.new_empty(x.shape), x.new_empty((x.shape[1],), dtype=torch.float32)

    def side_by_side(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        rows, heads, dim = q.shape
        return q.new_empty((rows, 3, heads, dim)), q.new_empty((3 * heads * dim,), dtype=torch.float32)

    two = "(Tensor, Tensor)"
    for name, arguments, function, fake in (
        ("gelu_backward_with_bias", "Tensor grad, Tensor x", gelu_backward, like_x),
        ("join_with_bias", "Tensor q, Tensor k, Tensor v", join, side_by_side),
    ):
        operator = torch.library.custom_op(
            f"sdfast::{name}", function, mutates_args=(), schema=f"({arguments}) -> {two}"
        )
        operator.register_fake(fake)
    return None
