"""The linear layer on the CPU, forward and backward: sdfast's (oneDNN where it is faster) against `F.linear` (MKL).

    pytest benchmarks/bench_linear.py --benchmark-only

Rows and widths of the packed step's layers; float32, freed pages kept, both in turns. `extra_info` has GFLOP/s of both
and the ratio of the medians.
"""

from __future__ import annotations

import statistics
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from step_clock import turns

from sdfast.engine.allocator import freed_pages_kept
from sdfast.models.linear import linear

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
    x = torch.randn(rows, inputs, requires_grad=True)
    weight, bias = torch.randn(outputs, inputs, requires_grad=True), torch.randn(outputs, requires_grad=True)
    grad = torch.randn(rows, outputs)

    def arm(function: Any) -> Any:
        return lambda: torch.autograd.grad(function(x, weight, bias), (x, weight, bias), grad)

    arms = {"ours": arm(linear), "F.linear": arm(F.linear)}
    with freed_pages_kept():
        turns(arms, dict.fromkeys(arms, 1), "cpu", 2)
        seconds = {which: statistics.median(s) for which, s in turns(arms, dict.fromkeys(arms, 3), "cpu", 9).items()}
    flops = 6 * rows * inputs * outputs
    benchmark.extra_info.update({f"GFLOP/s {which}": flops / s / 1e9 for which, s in seconds.items()})
    benchmark.extra_info["ratio"] = seconds["F.linear"] / seconds["ours"]
    benchmark.pedantic(lambda: None, rounds=1)  # the samples are in extra_info
