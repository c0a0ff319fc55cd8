"""Whether training in bfloat16 goes as training in float32 does: the same steps, the losses side by side."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from step_clock import matmul_precision
from step_setup import Ours, Point, trainer_of
from torch import Tensor

from gpu_parts import plan
from gpu_parts.context import Context
from sdfast.config import EngineConfig
from sdfast.ops.linear.fp32_matmul import float32_products

STEPS, PARTS = 60, 10
APART = 0.01  # of the means over a tenth of the run; quick, of ten steps, five times that


def run_steps(
    point: Point, engine: dict[str, Any], dtype: torch.dtype, steps: int, context: Context
) -> tuple[Tensor, Tensor, Tensor]:
    """Losses [steps] of sdfast's loop, its last weights and its first ones; in float64 on the CPU."""
    trainer = trainer_of(point, Ours(engine=engine), context.folder, dtype)
    start, losses = weights_of(trainer), []
    tf32 = context.device == "cuda" and engine.get("precision") != "fp32"
    with matmul_precision(tf32), float32_products(EngineConfig(**engine).fp32_products):
        for _ in range(steps):
            losses.append(trainer.step()["loss"].detach().clone())
    return torch.stack(losses).double().cpu(), weights_of(trainer), start


def weights_of(trainer: Any) -> Tensor:
    """All trained numbers but the keys' biases: softmax ignores them, and Adam divides their noise by itself."""
    parts = []
    for name, parameter in trainer.engine.parameters.items():
        numbers = parameter.detach().double().flatten().cpu()
        if name.endswith("qkv.bias"):
            queries, _, values = numbers.chunk(3)
            numbers = torch.cat((queries, values))
        parts.append(numbers)
    return torch.cat(parts)


def run(context: Context) -> Iterator[dict[str, Any]]:
    """bfloat16 as it trains by default (compiled and captured on a GPU), then float32 without either."""
    stage, model, batch = ("distill", "tiny", 4) if context.quick else plan.MAIN
    steps, allowed = (10, 5 * APART) if context.quick else (STEPS, APART)
    point = Point(stage, model, batch, context.device, 8 * batch)
    curves = {}
    for precision, more in (("bf16", {}), ("fp32", {"compile": False, "cuda_graph": False})):
        losses = run_steps(point, {"precision": precision, **more}, torch.float32, steps, context)[0]
        curves[precision] = losses.unflatten(0, (PARTS, -1)).mean(1).tolist()
        yield {"item": precision, "point": str(point), "steps": steps, "losses": curves[precision]}
    apart = max(abs(x - y) / abs(x) for x, y in zip(curves["fp32"], curves["bf16"], strict=True))
    yield {"item": "apart", "apart": apart, "met": apart <= allowed}


def warm(what: dict[str, Any], device: str) -> None:
    """See `steps.warm`."""
    from gpu_parts import steps

    steps.warm({"model": plan.MAIN[1] if device == "cuda" else "tiny", "arm": "sdfast"}, device)
