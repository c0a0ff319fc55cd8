"""`torch.nn.attention.varlen.varlen_attn`: all sequences of all groups in one launch (CUDA, half precision)."""

from __future__ import annotations

import torch
from torch import Tensor

from sdfast.models.attention.groups import Groups
from sdfast.models.attention.sdpa import sdpa_attention


def why_not_varlen(device: torch.device, dtype: torch.dtype, dim: int) -> str | None:
    """None when it can be used, else the reason."""
    try:
        from torch.nn.attention.varlen import varlen_attn  # noqa: F401
    except ImportError:
        return f"torch {torch.__version__} has no torch.nn.attention.varlen"
    return needs_half_on_cuda(device, dtype, dim)


def needs_half_on_cuda(device: torch.device, dtype: torch.dtype, dim: int) -> str | None:
    """What FlashAttention kernels ask for, whoever brings them."""
    if device.type != "cuda":
        return f"its kernels are for CUDA, not for {device.type}"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"its kernels are for float16 and bfloat16, not for {str(dtype).removeprefix('torch.')}"
    return None if dim % 8 == 0 and dim <= 256 else f"heads of {dim} values do not fit its kernels"


def varlen_attention(q: Tensor, k: Tensor, v: Tensor, groups: Groups, dropout: float = 0.0) -> Tensor:
    """See `attend_across` for the arguments. Padded sequences go to `sdpa`: `seqused_k` has no gradients.

    The operator has no dropout, so it is not chosen where there is some.
    """
    if groups.padded or dropout:
        return sdpa_attention(q, k, v, groups, dropout)
    from torch.nn.attention.varlen import varlen_attn

    q_offsets, k_offsets = groups.offsets(q.device)
    longest_q, longest_k = groups.longest
    out = varlen_attn(q, k, v, q_offsets, k_offsets, longest_q, longest_k)
    assert isinstance(out, Tensor)
    return out
