"""Where a whole step of distillation spends its time: kernels by name and by kind, and what is idle between them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from gpu_parts.context import Context
from gpu_parts.kernels import covered, kind_of, spent
from gpu_parts.steps import arms_of, points, prepared

ARMS = ("sdfast", "sdfast compiled", "sdfast not compiled", "honest compiled")


def summary(step: Callable[[], Any], context: Context) -> dict[str, Any]:
    """Of three steps: microseconds a step by kind and for the top kernels, kernels a step, share of idle time."""
    steps = 1 if context.quick else 3
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if context.device == "cuda" else [])
    with profile(activities=activities) as profiler:
        for _ in range(steps):
            step()
        if context.device == "cuda":
            torch.cuda.synchronize()
    found = spent(profiler.events(), context.device)
    span = max(stop for *_, stop in found) - min(start for _, _, start, _ in found)
    kinds: Counter[str] = Counter()
    names: Counter[str] = Counter()
    for name, microseconds, *_ in found:
        kinds[kind_of(name)] += microseconds / steps
        names[name] += microseconds / steps
    busy = covered((start, stop) for *_, start, stop in found)
    return {
        "step_us": span / steps,
        "idle": 1 - busy / span,
        "kernels": len(found) / steps,
        "kinds_us": dict(kinds.most_common()),
        "top_us": {name[:120]: value for name, value in names.most_common(20)},
    }


def run(context: Context) -> Iterator[dict[str, Any]]:
    """Arm after arm, at batch 64 of ViT-B."""
    point = points(context)[0]
    result: dict[str, Any] = {"point": str(point), "arms": {}}
    for name, arm in arms_of(point, context).items():
        if name not in ARMS:
            continue

        def profiled(arm: Any = arm) -> dict[str, Any]:
            step, _ = prepared(arm, context)
            return summary(step, context)

        result["arms"][name] = context.attempt(profiled, needs=0 if context.quick else 5)
        yield result
