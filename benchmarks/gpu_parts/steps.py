"""The step table: every stage, the ways to run it, two sizes of model, three batch sizes."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from honest import Speed
from step_clock import calls_for, host_waits, matmul_precision, seconds_of, synchronise, turns
from step_setup import (
    Arm,
    Ours,
    Point,
    compiles_by_default,
    honest_arm,
    naive_arm,
    sdfast_arm,
    shortcuts_off,
    switches,
)

from gpu_parts.context import Context, release
from sdfast.engine.accounting import SHORTCUTS

IMAGES = 2048  # in memory
ARM_SECONDS = 12.0  # what an arm may need for building, compiling and its samples
MAIN = ("distill", "ViT-B/16", 64)
# By importance: the time may end before the list does.
POINTS = [
    MAIN,
    ("pretrain", "ViT-B/16", 64),
    ("finetune", "ViT-B/16", 64),
    ("distill", "ViT-L/16", 64),
    ("distill", "ViT-B/16", 256),
    ("distill", "ViT-B/16", 1024),
    ("pretrain", "ViT-B/16", 256),
    ("pretrain", "ViT-B/16", 1024),
    ("finetune", "ViT-B/16", 256),
    ("pretrain", "ViT-L/16", 64),
    ("finetune", "ViT-L/16", 64),
    ("distill", "ViT-L/16", 256),
    ("finetune", "ViT-B/16", 1024),
    ("pretrain", "ViT-L/16", 256),
    ("finetune", "ViT-L/16", 256),
    ("distill", "ViT-L/16", 1024),
]
QUICK_POINTS = [(stage, "tiny", 4) for stage in ("distill", "pretrain", "finetune")]


def points(context: Context) -> list[Point]:
    if context.quick:
        return [Point(*where, context.device, 8) for where in QUICK_POINTS]
    return [Point(*where, context.device, IMAGES) for where in POINTS]


def arms_of(point: Point, context: Context) -> dict[str, Arm]:
    """The arms by importance; all of them at batch 64 of ViT-B."""
    bf16 = point.device == "cuda"

    def ours(**how: Any) -> Arm:
        return sdfast_arm(point, context.folder, Ours(**how))

    by_default = compiles_by_default(point.device)
    other = "sdfast not compiled" if by_default else "sdfast compiled"
    arms = {"sdfast": ours(), other: ours(engine={"compile": not by_default})}
    arms["honest compiled"] = honest_arm(point, Speed(bf16, "layers"))
    arms["naive"] = naive_arm(point)
    if (not context.quick and point.model != MAIN[1]) or point.batch > MAIN[2]:
        return arms
    arms["sdfast, loader spared"] = ours(fixed_pixels=True)
    arms["naive TF32"] = naive_arm(point, tf32=True)
    arms["honest"] = honest_arm(point, Speed(bf16))
    if point.stage == "distill":
        arms["sdfast, no shortcuts"] = ours(engine=dict.fromkeys(SHORTCUTS, False))
        arms["sdfast live teacher"] = ours(teacher="live")
        arms |= {name: ours(engine=settings) for name, settings in shortcuts_off().items()}
    for name, values in switches().items():
        if "graph" in name:
            arms |= {f"sdfast {name}={value}": ours(engine={name: value}) for value in values}
    arms["sdfast fp32"] = ours(engine={"precision": "fp32"})
    arms["honest compiled whole"] = honest_arm(point, Speed(bf16, "whole", {"mode": "reduce-overhead"} if bf16 else {}))
    return arms


def prepared(arm: Arm, context: Context) -> tuple[Callable[[], Any], dict[str, Any]]:
    """An arm's step in its precision, warm, and what building it and the first steps took.

    The memory is the largest allocated at any moment from the building on, above what was allocated before it.
    """
    cuda = context.device == "cuda"
    release(context.device)
    before = torch.cuda.memory_allocated() if cuda else 0
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    tf32 = cuda and arm.precision != "fp32"
    with matmul_precision(tf32):
        step = arm.build()
        built = time.perf_counter()
        step()
    synchronise(context.device)
    first = time.perf_counter() - built

    def run() -> Any:
        with matmul_precision(tf32):
            return step()

    slow = seconds_of(run, 1, context.device) > 0.3
    if not context.quick and not slow:  # what is captured or tuned in the first few steps
        run(), run()
    row: dict[str, Any] = {"build_s": built - started, "first_step_s": first, "precision": arm.precision}
    row["ours"] = arm.ours
    if cuda:
        synchronise(context.device)
        row["peak_bytes"] = torch.cuda.max_memory_allocated() - before
    row["host_waits"] = host_waits(run, 1 if slow else 5) if cuda else None
    row["calls"] = calls_for(run, context.device, 0.001 if context.quick else 0.08)
    return run, row


def timed(steps: dict[str, Callable[[], Any]], rows: dict[str, dict[str, Any]], point: Point, context: Context) -> None:
    """Let the arms take turns; writes the figures into their rows."""
    if not steps:
        return
    calls = {name: rows[name]["calls"] for name in steps}
    samples = turns(steps, calls, context.device, 3 if context.quick else 7 if point.batch <= MAIN[2] else 5)
    for name, seconds in samples.items():
        rows[name] |= {"seconds": seconds, "interleaved": len(steps) > 1}
        middle = statistics.median(seconds)
        rate = rows[name]["flops"] * point.batch / middle
        peak = context.peak(rows[name]["precision"])
        rows[name] |= {"ms": middle * 1e3, "img/s": point.batch / middle, "TFLOP/s": rate / 1e12}
        rows[name]["of_peak"] = rate / peak if peak else None


def measure(point: Point, context: Context) -> dict[str, dict[str, Any]]:
    """A row an arm. Arms that do not fit beside the others are timed by themselves afterwards."""
    torch._dynamo.reset()
    rows: dict[str, dict[str, Any]] = {}
    live: dict[str, Callable[[], Any]] = {}
    alone: dict[str, Arm] = {}

    def prepare(name: str, arm: Arm) -> bool:
        made = context.attempt(prepared, arm, context, needs=0 if context.quick else ARM_SECONDS)
        if isinstance(made, dict):
            rows[name] = made
            return False
        live[name], rows[name] = made
        rows[name]["flops"] = arm.flops
        return True

    for name, arm in arms_of(point, context).items():
        if not prepare(name, arm) and rows[name]["error"] == "out of memory":
            alone[name] = arm
        release(context.device)
    timed(live, rows, point, context)
    live.clear()
    for name, arm in alone.items():
        release(context.device)
        if prepare(name, arm):
            timed(live, rows, point, context)
            live.clear()
    gc.collect()
    return rows


def run(context: Context) -> Iterator[dict[str, Any]]:
    """Point after point."""
    result: dict[str, Any] = {"points": {}}
    # The arms of a point are many variants of one function: more than torch compiles by itself.
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True, recompile_limit=64):
        for point in points(context):
            rows = context.attempt(measure, point, context, needs=0 if context.quick else 2 * ARM_SECONDS)
            where = {"stage": point.stage, "model": point.model, "batch": point.batch}
            result["points"][str(point)] = {
                **where,
                **({"error": rows["error"]} if "error" in rows else {"arms": rows}),
            }
            release(context.device)
            yield result
