"""Where a step of distillation spends its time: kernels by name and by kind, and what is idle between them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from step_setup import Point
from torch.profiler import ProfilerActivity, profile

from gpu_parts import plan, steps
from gpu_parts.arms import IMAGES
from gpu_parts.context import Context
from gpu_parts.kernels import covered, kind_of, spent

KERNELS = 80  # that are listed


def summary(step: Callable[[], Any], context: Context) -> dict[str, Any]:
    """Of a few steps: microseconds a step by kind and by kernel, kernels a step, share of idle time."""
    count = 1 if context.quick else 3
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if context.device == "cuda" else [])
    with profile(activities=activities) as profiler:
        for _ in range(count):
            step()
        if context.device == "cuda":
            torch.cuda.synchronize()
    found = spent(profiler.events(), context.device)
    span = max(stop for *_, stop in found) - min(start for _, _, start, _ in found)
    kinds: Counter[str] = Counter()
    names: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for name, microseconds, *_ in found:
        kinds[kind_of(name)] += microseconds / count
        names[name] += microseconds / count
        calls[name] += 1
    busy = covered((start, stop) for *_, start, stop in found)
    kernels = [[name[:160], calls[name] / count, spent_us] for name, spent_us in names.most_common(KERNELS)]
    return {
        "step_us": span / count,
        "idle": 1 - busy / span,
        "kernels_a_step": len(found) / count,
        "kinds_us": dict(kinds.most_common()),
        "kernels": kernels,  # name, calls a step, microseconds a step
    }


def run(context: Context) -> Iterator[dict[str, Any]]:
    """One row."""
    stage, model, batch = ("distill", "tiny", 4) if context.quick else plan.MAIN
    point = Point(stage, model, batch, context.device, 8 if context.quick else IMAGES)
    row: dict[str, Any] = {"point": str(point)}
    built, step = steps.started(context.what["arm"], point, context, row)
    steps.settle(step, context.device)
    yield {**row, **built.facts(), **summary(step, context)}
