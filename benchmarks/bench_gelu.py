"""What lies between two products of a block: GELU, norms, and the operators that make a bias's gradient on the way.

    pytest benchmarks/bench_gelu.py --benchmark-only

On a CPU, with every backend that is ready and freed pages kept: GELU forward and backward in float32; under bf16
autocast the sum and norm of a residual, forward and backward, and GELU's backward pass with the sums of its rows. On a
GPU that and the joining of three gradients in bfloat16, against torch's own operators. `extra_info` has milliseconds
and GB/s of what each has to move at least, and the backend of `auto`.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Callable
from typing import Any

import losses_setup as setup
import pytest
import torch
from torch import Tensor

from sdfast.ops.registry import all_rows, choose, why_not

SIZES = {"smallest": (8, 8), "ViT-Ti": (3952, 768), "ViT-S": (1976, 1536), "ViT-B": (988, 3072)}  # rows, MLP width
BATCHES = {"smallest": (8, 1, 8), "ViT-B, batch 64": (15808, 12, 64)}  # tokens, heads, values of a head


def compared(benchmark: Any, op: str, device: str, dtype: torch.dtype, step: Callable[[Any], Any], moved: int) -> None:
    """Time every backend of an operator that is ready; `step` calls one's function, and moves so many bytes."""
    ready = [name for name in all_rows()[op].backends if why_not(op, name, device, dtype) is None]
    steps = {name: lambda name=name: step(all_rows()[op].backends[name].function) for name in ready}  # type: ignore
    rows = {}
    with setup.pages_kept() if device == "cpu" else contextlib.nullcontext():
        for name, seconds in setup.interleaved(steps, device, budget=1.0).items():
            median = statistics.median(seconds)
            rows[name] = {"ms": median * 1e3, "GB/s": moved / median / 1e9}
        auto = choose(op, "auto", device, dtype)
        benchmark.group = op
        benchmark.extra_info.update(auto=auto, rows=rows, threads=torch.get_num_threads())
        benchmark.pedantic(steps[auto], rounds=5, warmup_rounds=1)


@pytest.mark.parametrize("name", SIZES)
def test_gelu(name: str, benchmark: Any) -> None:
    x = torch.randn(SIZES[name], generator=torch.Generator().manual_seed(0)).requires_grad_()
    grad = torch.ones_like(x)

    def step(function: Callable[[Tensor], Tensor]) -> tuple[Tensor, ...]:
        return torch.autograd.grad(function(x), x, grad)

    compared(benchmark, "gelu", "cpu", torch.float32, step, 5 * 4 * x.numel())


@pytest.mark.parametrize("name", SIZES)
def test_added_norm(name: str, benchmark: Any) -> None:
    rows, mlp = SIZES[name]
    width = max(mlp // 4, 8)
    x, weight, bias = (torch.randn(size).requires_grad_() for size in ((rows, width), (width,), (width,)))
    change = torch.randn(rows, width).bfloat16().requires_grad_()
    grads = [torch.randn(rows, width), torch.randn(rows, width).bfloat16()]

    def step(function: Callable[..., tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        made = function(x, change, weight, bias, 1e-6, False)[:2]
        return torch.autograd.grad(made, (x, change, weight, bias), grads)

    # Of each number forward 4 + 2 bytes read and as many written; backward 4 + 2 + 4 read, 4 + 2 written.
    compared(benchmark, "added_norm", "cpu", torch.bfloat16, step, (12 + 10 + 6) * x.numel())


@pytest.mark.parametrize("name", SIZES)
def test_gelu_backward_on_a_cpu(name: str, benchmark: Any) -> None:
    grad, x = (torch.randn(SIZES[name]).bfloat16() for _ in range(2))
    compared(benchmark, "gelu_backward_with_bias", "cpu", torch.bfloat16, lambda step: step(grad, x), 6 * x.numel())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("op", ["gelu_backward_with_bias", "join_with_bias"])
def test_bias_gradients(op: str, name: str, benchmark: Any) -> None:
    tokens, heads, dim = BATCHES[name]
    wide = (tokens, 4 * heads * dim)
    shapes = [wide, wide] if op.startswith("gelu") else [(tokens, heads, dim)] * 3
    operands = [torch.randn(shape, device="cuda", dtype=torch.bfloat16) for shape in shapes]
    moved = 2 * sum(each.numel() for each in operands) + 2 * operands[0].numel() * (1 if len(operands) == 2 else 3)
    compared(benchmark, op, "cuda", torch.bfloat16, lambda function: function(*operands), moved)
