"""FlashAttention kernels that take all sequences of all groups in one launch (CUDA): torch's own, and xformers'."""

from __future__ import annotations

import functools
import importlib
import inspect
from typing import Any

import torch
from torch import Tensor

from sdfast.ops.attention.groups import Groups
from sdfast.ops.attention.sdpa import sdpa_attention
from sdfast.ops.registry import Use

NO_DROPOUT = "it has no dropout of attention weights"


def why_not_varlen(use: Use) -> str | None:
    """None when `torch.nn.attention.varlen.varlen_attn` can be used (half precision), else the reason."""
    if use.dropout:
        return NO_DROPOUT
    try:
        from torch.nn.attention.varlen import varlen_attn  # noqa: F401
    except ImportError:
        return f"torch {torch.__version__} has no torch.nn.attention.varlen"
    return _needs_half_on_cuda(use)


def varlen_attention(q: Tensor, k: Tensor, v: Tensor, groups: Groups, dropout: float = 0.0) -> Tensor:
    """Arguments as `attend_across` has them. Padded sequences go to `sdpa`: `seqused_k` has no gradients.

    So do those with a window of which only some tokens ask: the operator takes these for the last ones. It has no
    dropout, so it is not chosen where there is some.
    """
    windowed = groups.windowed
    if groups.padded or dropout or (windowed and not (groups.of_themselves and _has_windows())):
        return sdpa_attention(q, k, v, groups, dropout)
    from torch.nn.attention.varlen import varlen_attn

    q_offsets, k_offsets = groups.offsets(q.device)
    longest_q, longest_k = groups.longest
    further: dict[str, Any] = {"window_size": (groups.window, groups.window)} if windowed else {}
    out = varlen_attn(q, k, v, q_offsets, k_offsets, longest_q, longest_k, **further)
    assert isinstance(out, Tensor)
    return out


@functools.cache
def _has_windows() -> bool:
    from torch.nn.attention.varlen import varlen_attn

    return "window_size" in inspect.signature(varlen_attn).parameters


def why_not_xformers(use: Use) -> str | None:
    """None when `memory_efficient_attention` can be used, else the reason; imported only where its kernels fit."""
    if use.device == "cuda" and use.dtype == torch.float32:  # its CUTLASS kernels
        reason = None if use.dim % 4 == 0 else f"heads of {use.dim} values do not fit its kernels"
    else:
        reason = _needs_half_on_cuda(use)
    if reason is not None:
        return reason
    try:
        importlib.import_module("xformers.ops.fmha.attn_bias")
    except (ImportError, OSError, RuntimeError) as error:
        return f"xformers does not import ({error}); pip install xformers"
    return None


def xformers_attention(q: Tensor, k: Tensor, v: Tensor, groups: Groups, dropout: float = 0.0) -> Tensor:
    """Arguments as `attend_across` has them. Padded sequences go to `sdpa`: no bias for them has gradients.

    So do windows, for which there is no bias of sequences of any length that looks both ways.

    With a block-diagonal bias; FlashAttention where the card has it.
    """
    if groups.padded or groups.windowed:
        return sdpa_attention(q, k, v, groups, dropout)
    operators: Any = importlib.import_module("xformers.ops")
    bias = _bias(tuple(groups.lengths("queries")), tuple(groups.lengths("keys")), q.device)
    return operators.memory_efficient_attention(q[None], k[None], v[None], attn_bias=bias, p=dropout)[0]


@functools.lru_cache(maxsize=64)
def _bias(queries: tuple[int, ...], keys: tuple[int, ...], device: torch.device) -> Any:
    biases: Any = importlib.import_module("xformers.ops.fmha.attn_bias")
    return biases.BlockDiagonalMask.from_seqlens(queries, keys).to(device)


def _needs_half_on_cuda(use: Use) -> str | None:
    """What FlashAttention kernels ask for, whoever brings them."""
    if use.device != "cuda":
        return f"its kernels are for CUDA, not for {use.device}"
    if use.dtype not in (torch.float16, torch.bfloat16):
        return f"its kernels are for float16 and bfloat16, not for {str(use.dtype).removeprefix('torch.')}"
    return None if use.dim % 8 == 0 and use.dim <= 256 else f"heads of {use.dim} values do not fit its kernels"
