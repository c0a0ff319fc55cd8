"""Attention over groups of sequences whose token rows lie one after the other, by everything that offers it.

A call takes q, k and v, [T, H, d] each, and the groups: (sequences, tokens) pairs with sum(sequences * tokens) = T.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from step_clock import calls_for, turns
from torch import Tensor

from gpu_parts.context import Context

Groups = tuple[tuple[int, int], ...]
Backend = Callable[[Tensor, Tensor, Tensor, Groups], Tensor]


def _per_group(q: Tensor, k: Tensor, v: Tensor, groups: Groups, attend: Callable[..., Tensor]) -> Tensor:
    """`attend` on [B, H, N, d] for every group."""
    out, row = [], 0
    for sequences, tokens in groups:
        rows = slice(row, row := row + sequences * tokens)
        views = (x[rows].unflatten(0, (sequences, tokens)).transpose(1, 2) for x in (q, k, v))
        out.append(attend(*views).transpose(1, 2).flatten(0, 1))
    return torch.cat(out)


def eager(q: Tensor, k: Tensor, v: Tensor, groups: Groups) -> Tensor:
    """Products and softmax, written out; in float64 it is the truth."""

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1) @ v

    return _per_group(q, k, v, groups, attend)


def sdpa(q: Tensor, k: Tensor, v: Tensor, groups: Groups) -> Tensor:
    return _per_group(q, k, v, groups, F.scaled_dot_product_attention)


def varlen(q: Tensor, k: Tensor, v: Tensor, groups: Groups) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    bounds, longest = _bounds(groups, q.device)
    return varlen_attn(q, k, v, bounds, bounds, longest, longest)


def xformers(q: Tensor, k: Tensor, v: Tensor, groups: Groups) -> Tensor:
    from xformers.ops import memory_efficient_attention

    return memory_efficient_attention(q[None], k[None], v[None], attn_bias=_block_diagonal(groups, q.device))[0]


@cache
def _bounds(groups: Groups, device: torch.device) -> tuple[Tensor, int]:
    lengths = torch.tensor([tokens for sequences, tokens in groups for _ in range(sequences)])
    return F.pad(lengths.cumsum(0), (1, 0)).to(device, torch.int32), max(tokens for _, tokens in groups)


@cache
def _block_diagonal(groups: Groups, device: torch.device) -> Any:
    from xformers.ops.fmha.attn_bias import BlockDiagonalMask

    return BlockDiagonalMask.from_seqlens([tokens for sequences, tokens in groups for _ in range(sequences)]).to(device)


BACKENDS: dict[str, Backend] = {"eager": eager, "sdpa": sdpa, "varlen": varlen, "xformers": xformers}


def operands(groups: Groups, heads: int, width: int, dtype: torch.dtype, device: str) -> list[Tensor]:
    """q, k, v and the gradient of the result; [T, H, d], random."""
    rows = sum(sequences * tokens for sequences, tokens in groups)
    generator = torch.Generator().manual_seed(rows)
    shape = (rows, heads, width)
    made = [torch.randn(shape, generator=generator).to(device, dtype) for _ in range(4)]
    return [*(x.requires_grad_() for x in made[:3]), made[3]]


def results(backend: Backend, tensors: list[Tensor], groups: Groups) -> list[Tensor]:
    """The result and the three gradients."""
    q, k, v, grad = tensors
    out = backend(q, k, v, groups)
    return [out.detach(), *torch.autograd.grad(out, (q, k, v), grad)]


def agreement(groups: Groups, heads: int, width: int, dtype: torch.dtype, context: Context) -> dict[str, Any]:
    """Errors of every backend against float64, of the result and the gradients; met: at most twice eager's.

    The error is a norm over all elements: the largest one's, of few elements, is a matter of luck (shown beside it).
    """
    tensors = operands(groups, heads, width, dtype, context.device)
    exact = [x.detach().double().requires_grad_(x.requires_grad) for x in tensors]
    truth = results(eager, exact, groups)

    def errors(backend: Backend) -> tuple[list[float], list[float]]:
        differences = [x.double() - y for x, y in zip(results(backend, tensors, groups), truth, strict=True)]
        norms = [float(x.norm() / y.norm()) for x, y in zip(differences, truth, strict=True)]
        return norms, [float(x.abs().max()) for x in differences]

    allowed = errors(eager)
    rows: dict[str, Any] = {}
    for name, backend in BACKENDS.items():
        found = context.attempt(errors, backend)
        if isinstance(found, dict):
            rows[name] = found
            continue
        norm, largest = (max(x / y for x, y in zip(*pair, strict=True)) for pair in zip(found, allowed, strict=True))
        rows[name] = {"errors": found[0], "times_eager": norm, "largest_times_eager": largest, "met": norm <= 2}
    return rows


def timing(groups: Groups, heads: int, width: int, dtype: torch.dtype, context: Context) -> dict[str, Any]:
    """Milliseconds of forward and backward, the backends in turns, and their TFLOP/s (backward = twice forward)."""
    tensors = operands(groups, heads, width, dtype, context.device)
    flops = 3 * sum(4.0 * sequences * tokens**2 * heads * width for sequences, tokens in groups)
    steps: dict[str, Callable[[], Any]] = {}
    rows: dict[str, Any] = {}
    for name, backend in BACKENDS.items():
        step = lambda backend=backend: results(backend, tensors, groups)  # noqa: E731
        tried = context.attempt(lambda step=step: [step() for _ in range(3)])
        if isinstance(tried, dict):
            rows[name] = tried
        else:
            steps[name] = step
    calls = {name: calls_for(step, context.device, 0.001 if context.quick else 0.02) for name, step in steps.items()}
    for name, seconds in turns(steps, calls, context.device, 3 if context.quick else 15).items():
        middle = statistics.median(seconds)
        rows[name] = {"ms": middle * 1e3, "TFLOP/s": flops / middle / 1e12}
    return rows


def shapes(context: Context) -> dict[str, Groups]:
    """The masked view, the clean view, and both packed, at batch 64."""
    batch = 2 if context.quick else 64
    return {"50": ((batch, 50),), "197": ((batch, 197),), "50+197": ((batch, 50), (batch, 197))}


def run(context: Context) -> Iterator[dict[str, Any]]:
    """Times in bfloat16 and float32, 12 heads of 64 features."""
    result: dict[str, Any] = {"heads": 2 if context.quick else 12, "head_width": 64, "rows": {}}
    for dtype in (torch.bfloat16, torch.float32):
        for name, groups in shapes(context).items():
            key = f"{name} tokens, {str(dtype).removeprefix('torch.')}"
            given = (groups, result["heads"], result["head_width"], dtype, context)
            result["rows"][key] = context.attempt(timing, *given, needs=3)
            yield result
