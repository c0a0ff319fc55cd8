"""The grid of benchmarks/bench_losses.py, the points that matter most first, as far as the time reaches; host time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Any

import losses_setup as setup
import torch
from bench_losses import NOISE, measure

from gpu_parts.context import Context
from sdfast.ops import registry
from sdfast.ops.mae_distill.loss import ROW

CALLS = 300


def in_order(quick: bool) -> list[setup.Point]:
    """bfloat16 before float32, the batch whose bandwidth is judged first, then the paper's; large models first."""
    if quick:
        return [setup.Point(1, "ViT-Ti", False, "float32")]
    batches, models = (256, 64, 8, 1), ("ViT-B", "ViT-L", "ViT-Ti")

    def place(point: setup.Point) -> tuple[bool, int, bool, int]:
        return point.dtype == "float32", batches.index(point.batch), not point.tokens, models.index(point.model)

    return sorted(setup.GRID, key=place)


def host_time(backend: str, context: Context) -> dict[str, Any]:
    """Microseconds until a forward call returns, without waiting for what it starts."""
    call = setup.forward_call(setup.Point(1, "ViT-Ti", False, "float32"), context.device, backend)
    calls, samples = 20 if context.quick else CALLS, []
    for _ in range(20):
        call()
    for _ in range(5):
        if context.device == "cuda":
            torch.cuda.synchronize()
        begun = time.perf_counter()
        for _ in range(calls):
            call()
        samples.append((time.perf_counter() - begun) / calls)
    return {"host_us": statistics.median(samples) * 1e6}


def run(context: Context) -> Iterator[dict[str, Any]]:
    """A row a point; `lost` where the backend of "auto" is slower than the better of eager and compile."""
    auto = registry.choose("mae_distill", "auto", context.device)
    for backend in ROW.backends:
        if backend != "reference" and registry.why_not("mae_distill", backend, context.device) is None:
            yield {"item": f"host, {backend}", **context.attempt(host_time, backend, context)}
    for point in in_order(context.quick):
        row = context.attempt(measure, point, context.device, 0.0 if context.quick else 0.4, needs=4)
        if "error" not in row:
            best = min(row["eager"]["ms"], row["compile"]["ms"])
            row = {"backends": row, "lost": row[auto]["ms"] > NOISE * best, "bytes_per_s": row[auto]["GB/s"] * 1e9}
        yield {"item": str(point), "auto": auto, **row}
