"""The grid of benchmarks/bench_losses.py, the points that matter most first, as far as the time reaches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import losses_setup as setup
from bench_losses import NOISE, measure

from gpu_parts.context import Context
from sdfast.losses.mae_distill import dispatch


def in_order(quick: bool) -> list[setup.Point]:
    """bfloat16 before float32, the paper's batch and model first."""
    if quick:
        return [setup.Point(1, "ViT-Ti", False, "float32")]
    batches, models = (64, 256, 8, 1), ("ViT-B", "ViT-L", "ViT-Ti")

    def place(point: setup.Point) -> tuple[bool, int, int]:
        return point.dtype == "float32", batches.index(point.batch), models.index(point.model)

    return sorted(setup.GRID, key=place)


def run(context: Context) -> Iterator[dict[str, Any]]:
    """A row a point; `lost` where the backend of "auto" is slower than the better of eager and compile."""
    auto = dispatch.choose_backend("auto", context.device)
    result: dict[str, Any] = {"auto": auto, "rows": {}}
    copy = context.environment.get("copy_bytes_per_s")
    for point in in_order(context.quick):
        row = context.attempt(measure, point, context.device, 0.0 if context.quick else 0.4, needs=6)
        if "error" not in row:
            best = min(row["eager"]["ms"], row["compile"]["ms"])
            row["lost"] = row[auto]["ms"] > NOISE * best
            row["of_copy"] = row[auto]["GB/s"] * 1e9 / copy if copy else None
        result["rows"][str(point)] = row
        yield result
