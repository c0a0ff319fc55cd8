"""DeepSpeed's ZeRO against the plain loop: a step's time and its memory on one GPU, and on all of the machine's.

Nothing is compiled here. In one process the plain loop is also run without its CUDA graph, which DeepSpeed's engine
does not have. Each way is measured by itself, so that its memory is its own. With several GPUs torchrun starts
a process for each.
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import sys
from collections.abc import Iterator
from typing import Any

import torch
from step_setup import Point
from zero_setup import PLAIN, Task, by_step, launched, measure

from gpu_parts.context import Context, release
from sdfast import launch
from sdfast.engine.zero import import_deepspeed
from sdfast.ranks import Ranks

BATCH, ROUNDS = 64, 4  # images of a GPU, samples
NEEDED = 5.0  # seconds to begin another way with
SHARED = ("ZeRO 0", "ZeRO 1", "ZeRO 2", "ZeRO 3", "ZeRO 2, offload=cpu", "ZeRO 3, offload=cpu")
ALONE = ("plain loop, no CUDA graph", *SHARED[1:4], PLAIN, *SHARED[4:])  # the capture after those that matter more


def why_not() -> str | None:
    """Why the part cannot run here; None when it can."""
    return None if importlib.util.find_spec("deepspeed") else "deepspeed is not installed"


def point_of(context: Context, world: int) -> Point:
    """The step of so many processes together."""
    if context.quick:
        return Point("distill", "tiny", 4 * world, context.device, 16)
    return Point("distill", "ViT-B/16", BATCH * world, context.device, 2 * BATCH * world)


def figures(ranks: list[dict[str, Any]], name: str, batch: int) -> dict[str, Any]:
    """Of a way, from the rows of all its processes; memory is that of the process that needs most."""
    seconds = by_step(ranks, name)
    middle = statistics.median(seconds)
    peaks = [rank[name]["peak_bytes"] for rank in ranks if rank[name]["peak_bytes"] is not None]
    row = {"sample_ms": [1e3 * each for each in seconds], "ms": middle * 1e3, "img/s": batch / middle}
    row["peak_bytes"] = max(peaks, default=None)
    return {**row, "loss": ranks[0][name]["loss"], "precision": ranks[0][name]["precision"]}


def on_one(context: Context, name: str, ranks: Ranks) -> dict[str, Any]:
    """A way in this process."""
    point = point_of(context, 1)
    return figures([measure([name], point, ranks, context.folder, ROUNDS)], name, point.batch)


def on_all(context: Context, world: int) -> dict[str, Any]:
    """All ways on so many processes; what went wrong is in the rows of those that were not finished."""
    point, folder = point_of(context, world), context.folder / "launched"
    folder.mkdir()
    threads = max(1, (os.cpu_count() or 1) // world)
    ways = SHARED[:: len(SHARED) - 1] if context.quick else SHARED
    task = Task(point, [[name] for name in ways], 1 if context.device == "cpu" else threads, ROUNDS)
    results, wrong = launched(task, world, folder, context.left())
    rows: dict[str, Any] = {
        name: figures(ranks, name, point.batch) for (name,), ranks in zip(task.sets, results, strict=False)
    }
    if wrong is not None and wrong.startswith("stopped"):
        wrong = f"not reached: {wrong}"
    return rows | {name: {"error": wrong} for name in ways if name not in rows}


def run(context: Context) -> Iterator[dict[str, Any]]:
    """A row a way: one process first; then all GPUs, where there are several."""
    if sys.modules.get("deepspeed", ...) is None:
        del sys.modules["deepspeed"]  # hidden from the other parts
    reason = why_not()
    if reason is not None:
        yield {"absent": reason}
        return
    import_deepspeed(torch.device(context.device))
    ranks = launch.join(torch.device(context.device), alone=True)
    where = f"{point_of(context, 1)}, one process"
    for name in ALONE:
        row = context.attempt(on_one, context, name, ranks, needs=0 if context.quick else NEEDED)
        yield {"item": f"{where}, {name}", "point": where, "way": name, **row}
        release(context.device)
    launch.leave()
    world = torch.cuda.device_count() if context.device == "cuda" else 1
    if world > 1:
        where = f"{point_of(context, world)}, {world} processes"
        for name, row in on_all(context, world).items():
            yield {"item": f"{where}, {name}", "point": where, "way": name, **row}


def warm(what: dict[str, Any], device: str) -> None:
    """See `steps.warm`."""
    from gpu_parts import steps

    steps.warm({"model": "ViT-B/16" if device == "cuda" else "tiny", "arm": "sdfast"}, device)
