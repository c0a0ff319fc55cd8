"""The linear layer on the CPU, forward and backward: bf16x6 products and oneDNN's against `F.linear` (MKL).

    pytest benchmarks/bench_linear.py --benchmark-only

Rows and widths of the packed step's layers; float32, freed pages kept, all in turns. `extra_info` has GFLOP/s of each,
ratios of the medians, and the root mean square of the rounding errors of the output and of both gradients, as shares of
F.linear's.
"""

from __future__ import annotations

import os
import statistics
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from step_clock import turns
from torch import Tensor

from sdfast.engine.machine import freed_pages_kept
from sdfast.ops.linear import linear
from sdfast.ops.linear.fp32_matmul import float32_products, has_amx

SHAPES = {
    "ViT-Ti MLP in": (3952, 192, 768),
    "ViT-Ti MLP out": (3952, 768, 192),
    "ViT-S qkv": (1976, 384, 1152),
    "ViT-S MLP in": (1976, 384, 1536),
    "ViT-S MLP out": (1976, 1536, 384),
    "ViT-B MLP in": (988, 768, 3072),
    "ViT-B MLP out": (988, 3072, 768),
}


@pytest.mark.parametrize("name", SHAPES)
def test_linear(benchmark: Any, name: str) -> None:
    rows, inputs, outputs = SHAPES[name]
    torch.manual_seed(0)
    x = torch.randn(rows, inputs, requires_grad=True)
    weight, bias = torch.randn(outputs, inputs, requires_grad=True), torch.randn(outputs, requires_grad=True)
    grad = torch.randn(rows, outputs)

    def arm(function: Any, products: Any = "auto") -> Any:
        def run() -> Any:
            with float32_products(products):
                out = function(x, weight, bias)
                return [out.detach(), *torch.autograd.grad(out, (x, weight), grad)]

        return run

    arms = {"F.linear": arm(F.linear), "oneDNN": arm(linear, "ieee")}
    if has_amx(os.environ.get("SDFAST_SIMD")):
        arms["bf16x6"] = arm(linear, "bf16x6")
    with freed_pages_kept():
        turns(arms, dict.fromkeys(arms, 1), "cpu", 2)
        seconds = {which: statistics.median(s) for which, s in turns(arms, dict.fromkeys(arms, 3), "cpu", 9).items()}
    flops = 6 * rows * inputs * outputs
    exact = [x.double() @ weight.t().double() + bias, grad.double() @ weight.double(), grad.t().double() @ x.double()]
    for which, taken in seconds.items():
        benchmark.extra_info[f"GFLOP/s {which}"] = flops / taken / 1e9
        benchmark.extra_info[f"ratio {which}"] = seconds["F.linear"] / taken
        benchmark.extra_info[f"errors {which}"] = [
            error_of(ours, truth) / error_of(theirs, truth)
            for ours, theirs, truth in zip(arms[which](), arms["F.linear"](), exact, strict=True)
        ]
    benchmark.pedantic(lambda: None, rounds=1)  # the samples are in extra_info


def error_of(found: Tensor, truth: Tensor) -> float:
    return float((found - truth).detach().square().mean().sqrt())
