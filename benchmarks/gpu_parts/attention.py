"""The attention backends: how far each is from the truth, and how long it takes, at the step's own sizes."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch
from step_clock import calls_for, turns
from torch import Tensor

from gpu_parts.context import Context
from sdfast.models.attention import BACKENDS, Group, Groups, attend, why_not

EAGER = "reference"


def groups_of(context: Context, batch: int) -> dict[str, Groups]:
    """The masked view, the clean view, and both in one pass."""
    batch = 2 if context.quick else batch
    masked, clean = Group(batch, 50, 50), Group(batch, 197, 197)
    return {"50": Groups((masked,)), "197": Groups((clean,)), "50+197": Groups((masked, clean))}


def operands(groups: Groups, heads: int, width: int, dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
    """qkv [T, 3, H, d] and the gradient of the result [T, H * d]; random."""
    rows = sum(groups.query_sizes)
    generator = torch.Generator().manual_seed(rows)
    qkv = torch.randn(rows, 3, heads, width, generator=generator).to(device, dtype)
    return qkv.requires_grad_(), torch.randn(rows, heads * width, generator=generator).to(device, dtype)


def results(backend: str, qkv: Tensor, grad: Tensor, groups: Groups) -> list[Tensor]:
    """The result, and the gradients of queries, keys and values."""
    out = attend(qkv, groups, backend)
    return [out.detach(), *torch.autograd.grad(out, qkv, grad)[0].unbind(1)]


def ready(backend: str, qkv: Tensor) -> str | None:
    """None when the backend can be used for these operands, else the reason."""
    return why_not(backend, qkv.device, qkv.dtype, qkv.shape[-1])


def agreement(groups: Groups, heads: int, width: int, dtype: torch.dtype, context: Context) -> dict[str, Any]:
    """Errors of every backend against float64, of the result and the gradients; met: at most twice the reference's.

    The error is a norm over all elements: the largest one's, of few elements, is a matter of luck (shown beside it).
    """
    qkv, grad = operands(groups, heads, width, dtype, context.device)
    truth = results(EAGER, qkv.detach().double().requires_grad_(), grad.double(), groups)

    def errors(backend: str) -> tuple[list[float], list[float]]:
        differences = [x.double() - y for x, y in zip(results(backend, qkv, grad, groups), truth, strict=True)]
        norms = [float(x.norm() / y.norm()) for x, y in zip(differences, truth, strict=True)]
        return norms, [float(x.abs().max()) for x in differences]

    allowed = errors(EAGER)
    rows: dict[str, Any] = {}
    for backend in BACKENDS:
        reason = ready(backend, qkv)
        found = {"absent": reason} if reason is not None else context.attempt(errors, backend)
        if isinstance(found, dict):
            rows[backend] = found
            continue
        norm, largest = (max(x / y for x, y in zip(*pair, strict=True)) for pair in zip(found, allowed, strict=True))
        rows[backend] = {"errors": found[0], "times_eager": norm, "largest_times_eager": largest, "met": norm <= 2}
    return rows


def timing(groups: Groups, heads: int, width: int, dtype: torch.dtype, context: Context) -> dict[str, Any]:
    """Milliseconds of forward and backward, the backends in turns, and their TFLOP/s (backward = twice forward)."""
    qkv, grad = operands(groups, heads, width, dtype, context.device)
    flops = 3 * sum(4.0 * group.batch * group.queries * group.keys * heads * width for group in groups.groups)
    steps: dict[str, Callable[[], Any]] = {}
    rows: dict[str, Any] = {}
    for backend in (*BACKENDS, "auto"):
        step = lambda backend=backend: results(backend, qkv, grad, groups)  # noqa: E731
        reason = None if backend == "auto" else ready(backend, qkv)
        tried = {"absent": reason} if reason is not None else context.attempt(lambda step=step: [step() for _ in "abc"])
        if isinstance(tried, dict):
            rows[backend] = tried
        else:
            steps[backend] = step
    calls = {name: calls_for(step, context.device, 0.001 if context.quick else 0.02) for name, step in steps.items()}
    for name, seconds in turns(steps, calls, context.device, 3 if context.quick else 15).items():
        middle = statistics.median(seconds)
        rows[name] = {"ms": middle * 1e3, "TFLOP/s": flops / middle / 1e12}
    return rows


def run(context: Context) -> Iterator[dict[str, Any]]:
    """Times in bfloat16 and float32, 12 heads of 64 features, batch 64."""
    result: dict[str, Any] = {"heads": 2 if context.quick else 12, "head_width": 64, "rows": {}}
    for dtype in (torch.bfloat16, torch.float32):
        for name, groups in groups_of(context, 64).items():
            key = f"{name} tokens, {str(dtype).removeprefix('torch.')}"
            given = (groups, result["heads"], result["head_width"], dtype, context)
            result["rows"][key] = context.attempt(timing, *given, needs=3)
            yield result
