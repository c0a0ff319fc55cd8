"""A sum and its LayerNorm in one pass, under bf16 autocast on a CPU.

A transformer adds what a layer gave to a float32 residual, normalises the sum in float32, and converts it for the next
matrix product. torch does each in a pass of its own, forwards and backwards; the compiled core does them in one.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from sdfast.ops.cpu_half import is_cpu_half, why_not_cpu_half
from sdfast.ops.registry import Backend, Op, Use, add

_Three = tuple[Tensor, Tensor, Tensor]


def added_norm(norm: nn.Module, x: Tensor, change: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The sum of a residual and a change, and its norm.

    Args:
        norm: a LayerNorm; where it has no bias, or is another norm, nothing is joined.
        x: [..., D].
        change: [..., D], or None for 0.

    Returns:
        x + change, and its norm: [..., D] both. Where `is_joined`, the norm is in bfloat16, as the next product takes
        it; the sum is in x's dtype.
    """
    if not (is_joined(x) and isinstance(norm, nn.LayerNorm) and norm.bias is not None):
        x = x if change is None else x + change
        return x, norm(x)
    sum_, half, _ = _joined(norm, x, change, False)
    return sum_, half


def normed_sum(norm: nn.LayerNorm, x: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:
    """The LayerNorm of a sum twice: as a residual, and as the next product takes it.

    Args:
        norm: with weight and bias.
        x, change: [..., D].

    Returns:
        [..., D] both: in float32, and in bfloat16 where `is_joined`; else one tensor twice.
    """
    if not is_joined(x):
        y = norm(x + change)
        return y, y
    _, half, wide = _joined(norm, x, change, True)
    return wide, half


def is_joined(x: Tensor) -> bool:
    """Whether sums and norms of a residual x are one pass: in float32 where `is_cpu_half`."""
    return x.dtype == torch.float32 and is_cpu_half("added_norm", x)


def reference_added_norm(
    x: Tensor, change: Tensor | None, weight: Tensor, bias: Tensor, eps: float, wide: bool
) -> _Three:
    """The specification of the joined pass: the sum, its norm in bfloat16, and its norm as it is (`wide` or not)."""
    total = x if change is None else x + change
    y = F.layer_norm(total, (x.shape[-1],), weight, bias, eps)
    return total, y.to(torch.bfloat16), y


def _joined(norm: nn.LayerNorm, x: Tensor, change: Tensor | None, wide: bool) -> _Three:
    shape = x.shape
    rows = x.reshape(-1, shape[-1])
    if change is not None:
        change = change.reshape(rows.shape).to(torch.bfloat16)
    made: _Three = _half_added_norm(rows, change, norm.weight, norm.bias, norm.eps, wide)
    total, half, full = (each.view(shape) if each.shape == rows.shape else each for each in made)
    return (x if change is None else total), half, full


def _half_added_norm(x: Tensor, change: Tensor | None, weight: Tensor, bias: Tensor, eps: float, wide: bool) -> _Three:
    made: _Three = _AddedNorm.apply(x, change, weight, bias, eps, wide)
    return made


class _AddedNorm(torch.autograd.Function):
    """Rows [T, D]. What is not asked for comes back as [0, D]: the sum without a change, the wide norm."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, change: Tensor | None, weight: Tensor, bias: Tensor, eps: float, wide: bool
    ) -> tuple[Tensor, ...]:
        total, half, full, stats = torch.ops.sdfast.added_norm(x, change, weight, bias, eps, wide)
        ctx.save_for_backward(x if change is None else total, stats, weight)
        ctx.changes = change is not None
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*([] if ctx.changes else [total]), *([] if wide else [full]))
        return total, half, full

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        total, stats, weight = ctx.saved_tensors
        of_sum, of_half, of_wide = grads
        out, half, sums = torch.ops.sdfast.added_norm_backward(
            of_sum if ctx.changes else None, of_half, of_wide, total, stats, weight, ctx.changes
        )
        return out, half if ctx.changes else None, sums[0], sums[1], None, None


def _why_not_half(use: Use) -> str | None:
    reason = why_not_cpu_half(use)
    if reason is None:
        _register()
    return reason


@functools.cache
def _register() -> None:
    """Once a process: torch 2.11 refuses it a second time."""
    torch.library.register_fake("sdfast::added_norm", _fake_forward)
    torch.library.register_fake("sdfast::added_norm_backward", _fake_backward)


def _fake_forward(
    x: Tensor, change: Tensor | None, weight: Tensor, bias: Tensor, eps: float, wide: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    nothing = x.new_empty((0, x.shape[1]))
    total = nothing if change is None else torch.empty_like(x)
    half = x.new_empty(x.shape, dtype=torch.bfloat16)
    return total, half, torch.empty_like(x) if wide else nothing.clone(), x.new_empty((len(x), 2))


def _fake_backward(
    of_sum: Tensor | None,
    of_half: Tensor | None,
    of_wide: Tensor | None,
    total: Tensor,
    stats: Tensor,
    weight: Tensor,
    half: bool,
) -> _Three:
    out_half = total.new_empty(total.shape if half else (0, total.shape[1]), dtype=torch.bfloat16)
    return torch.empty_like(total), out_half, total.new_empty((2, total.shape[1]))


add(
    Op(
        "added_norm",
        {
            "reference": Backend(reference_added_norm),
            "half": Backend(_half_added_norm, _why_not_half),
        },
        preferences={"cpu": ("half",)},
    )
)
