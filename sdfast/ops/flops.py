"""What torch's counter of FLOPs does not know of the operators that a step meets, by the convention of this package.

A multiply-add is 2 FLOPs; counted are matrix products, convolutions and both products of attention, whose backward
pass is twice its forward pass (what a fused kernel computes again is not counted). Norms, softmax, GELU and the losses
on pixels and features are not counted. Importing torch's counter imports Triton, so this is done when somebody counts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, flop_registry, register_flop_formula

from sdfast import _native

Formula = Callable[..., int]


def flop_counter() -> FlopCounterMode:
    """A counter that also knows the compiled core's operators, oneDNN's linear layer and attention on a CPU.

    The compiled attention is counted by the values of its bounds, which fake tensors do not have: there another
    backend counts (`reference`, whose products torch knows), with the same result.
    """
    return FlopCounterMode(display=False, custom_mapping=_known())


def _known() -> dict[Any, Formula]:
    """The formulas of operators: the compiled core's are entered in torch's own registry as well, once."""
    aten = torch.ops.aten
    known: dict[Any, Formula] = {}
    if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        known[torch.ops.mkldnn._linear_pointwise] = linear_flops
    for name in ("efficient_attention", "flash_attention", "cudnn_attention", "flash_attention_for_cpu"):
        known[getattr(aten, f"_scaled_dot_product_{name}")] = dense_attention_flops
        known[getattr(aten, f"_scaled_dot_product_{name}_backward")] = dense_attention_backward_flops
    if _native.available():
        for operator, formula in (("attention_forward", attention_flops), ("attention_backward", attention_backward)):
            _register(getattr(torch.ops.sdfast, operator, None), formula)
    return known


def _register(operator: Any, formula: Formula) -> None:
    if operator is not None and operator not in flop_registry:
        register_flop_formula(operator, get_raw=True)(formula)


def linear_flops(x: tuple[int, ...], *others: Any, out_shape: tuple[int, ...], **more: Any) -> int:
    """Of a linear layer: x [rows, in] -> [rows, out]."""
    return 2 * x[0] * x[1] * out_shape[1]


def dense_attention_flops(q: tuple[int, ...], k: tuple[int, ...], v: tuple[int, ...], *_: Any, **more: Any) -> int:
    """Both products of attention, q [B, H, N, d], k [B, H, M, d], v [B, H, M, e]."""
    batch, heads, queries, dim = q
    return 2 * batch * heads * queries * k[2] * (dim + v[3])


def dense_attention_backward_flops(grad: Any, *operands: Any, **more: Any) -> int:
    """Twice the forward pass."""
    return 2 * dense_attention_flops(*operands)


def attention_flops(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, *_: Any, **more: Any) -> int:
    """Both products of `sdfast::attention_forward` (csrc/cpu/attention_op.cpp), whose sequences lie in one matrix.

    Raises:
        RuntimeError: the bounds are fake, so that nobody knows the lengths.
    """
    if type(bounds) is not Tensor:
        raise RuntimeError("the compiled attention has no FLOPs under fake tensors: count with another backend")
    queries, keys = (bounds[:, last] - bounds[:, last - 1] for last in (1, 3))
    return 2 * 2 * int((queries * keys).sum()) * q.shape[1] * q.shape[2]


def attention_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *others: Any, **more: Any) -> int:
    """Twice the forward pass; `others` are the output, its normalisers and the bounds."""
    return 2 * attention_flops(q, k, v, others[2])
