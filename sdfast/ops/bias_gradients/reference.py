"""The operators by definition, in float32 (or wider): the specification."""

from __future__ import annotations

import torch
from torch import Tensor


def gelu_backward(grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Exact GELU's gradient, and the sum of its rows.

    Args:
        grad: [T, N] of the output.
        x: [T, N], the input.

    Returns:
        [T, N] in x's dtype; [N] float32 (float64 of float64).
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    made = torch.ops.aten.gelu_backward(grad.to(wide), x.to(wide))
    return made.to(x.dtype), made.sum(dim=0)


def join(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Three gradients side by side, and the sum of the rows.

    Args:
        q, k, v: [T, H, d], of one dtype.

    Returns:
        [T, 3, H, d]; [3 * H * d] float32 (float64 of float64).
    """
    joined = torch.stack((q, k, v), dim=1)
    return joined, joined.flatten(1).sum(dim=0, dtype=torch.promote_types(q.dtype, torch.float32))
