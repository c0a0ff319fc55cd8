"""Attention with dropout of its weights on a CPU without the compiled core: torch draws masks serially, one by one.

O = D V / (1 - rate), D = P * M, P = softmax(Q K^T / sqrt(d)), M the mask. The backward pass needs P and D and no mask:
with G = dO V^T / (1 - rate) the gradient of the scores is D * G - P * delta, delta = rowsum(dO * O), as in
FlashAttention (Dao et al., 2022, appendix B.4).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_LEVELS = 1 << 16  # four numbers of 16 bits from each that is drawn: rates are multiples of 1 / 65,536


def dropped_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, rate: float) -> Tensor:
    """dropout(softmax(q k^T / sqrt(d))) v.

    Args:
        q: [B, H, Nq, d], float32 or float64 on a CPU.
        k, v: [B, H, Nk, d].
        mask: bool, broadcast to the scores, False where a key is not seen; None sees all.
        rate: probability of a weight to be dropped, rounded to a multiple of 2^-16; the others are scaled by what that
            leaves, so that the mean is exact.

    Returns:
        [B, H, Nq, d]; differentiable once, with respect to q, k and v.
    """
    return _Dropped.apply(q, k, v, mask, min(_LEVELS - 1, round(rate * _LEVELS)))


class _Dropped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropped: int) -> Tensor:
        q, v = q * q.shape[-1] ** -0.5, v * (_LEVELS / (_LEVELS - dropped))  # here, where the numbers are few
        scores = q @ k.transpose(-2, -1)
        if mask is not None:
            scores.masked_fill_(~mask, float("-inf"))
        weights = scores.softmax(dim=-1)
        kept = torch.ge(_sixteen_bits(weights.shape), dropped - _LEVELS // 2, out=scores).mul_(weights)
        out = kept @ v
        ctx.save_for_backward(q, k, v, weights, kept, out)
        ctx.rest = (_LEVELS - dropped) / _LEVELS
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, weights, kept, out = ctx.saved_tensors
        grad = grads[0]
        scores = (grad @ v.transpose(-2, -1)).mul_(kept)
        scores.addcmul_(weights, (grad * out).sum(dim=-1, keepdim=True), value=-1)
        grad_q, grad_v = (scores @ k) * q.shape[-1] ** -0.5, (kept.transpose(-2, -1) @ grad) / ctx.rest
        return grad_q, scores.transpose(-2, -1) @ q, grad_v, None, None


def _sixteen_bits(shape: torch.Size) -> Tensor:
    """int16, uniform over all their values."""
    count = shape.numel()
    drawn = torch.empty(-(-count // 4), dtype=torch.int64).random_(torch.iinfo(torch.int64).min, None)
    return drawn.view(torch.int16)[:count].view(shape)
