"""The two ceilings of this very card: its matrix products, and a copy in its memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import losses_setup
import torch
from step_clock import matmul_precision, product_rate

from gpu_parts.context import Context


def run(context: Context) -> Iterator[dict[str, Any]]:
    """bfloat16 and the copy first: the other precisions are the baselines'."""
    cuda = context.device == "cuda"
    yield ceiling("bf16", context) if cuda else ceiling("fp32", context)
    size = 1 << (22 if context.quick else 30)
    yield {"item": "copy", "bytes_per_s": losses_setup.copy_bandwidth(context.device, size)}
    for precision in ("tf32", "fp32") if cuda else ():
        yield context.attempt(ceiling, precision, context, needs=2)


def ceiling(precision: str, context: Context) -> dict[str, Any]:
    """FLOP/s of a large square product of random operands in that precision, by the median."""
    size = 128 if context.quick else 8192 if precision != "fp32" else 4096
    with matmul_precision(precision == "tf32"):
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        rate = product_rate(size, dtype, context.device, 5 if context.quick else 20)
    return {"item": precision, "flop_per_s": rate}
