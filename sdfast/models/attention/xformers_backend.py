"""xformers' `memory_efficient_attention` with a block-diagonal bias: FlashAttention where the card has it."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import torch
from torch import Tensor

from sdfast.models.attention.groups import Groups
from sdfast.models.attention.sdpa import sdpa_attention
from sdfast.models.attention.varlen import needs_half_on_cuda


def why_not_xformers(device: torch.device, dtype: torch.dtype, dim: int) -> str | None:
    """None when it can be used, else the reason; it is imported only where its kernels fit."""
    if device.type == "cuda" and dtype == torch.float32:  # its CUTLASS kernels
        reason = None if dim % 4 == 0 else f"heads of {dim} values do not fit its kernels"
    else:
        reason = needs_half_on_cuda(device, dtype, dim)
    if reason is not None:
        return reason
    try:
        importlib.import_module("xformers.ops.fmha.attn_bias")
    except (ImportError, OSError, RuntimeError) as error:
        return f"xformers does not import ({error}); pip install xformers"
    return None


def xformers_attention(q: Tensor, k: Tensor, v: Tensor, groups: Groups, dropout: float = 0.0) -> Tensor:
    """See `attend_across` for the arguments. Padded sequences go to `sdpa`: no bias for them has gradients."""
    if groups.padded:
        return sdpa_attention(q, k, v, groups, dropout)
    operators: Any = importlib.import_module("xformers.ops")
    bias = _bias(tuple(groups.lengths("queries")), tuple(groups.lengths("keys")), q.device)
    return operators.memory_efficient_attention(q[None], k[None], v[None], attn_bias=bias, p=dropout)[0]


@functools.lru_cache(maxsize=64)
def _bias(queries: tuple[int, ...], keys: tuple[int, ...], device: torch.device) -> Any:
    biases: Any = importlib.import_module("xformers.ops.fmha.attn_bias")
    return biases.BlockDiagonalMask.from_seqlens(queries, keys).to(device)
