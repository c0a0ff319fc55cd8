"""One arm of a step, in a process of its own: how long it takes, and what it turned out to be."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import step_setup
import torch
from step_clock import calls_for, host_waits, matmul_precision, seconds_of, synchronise
from step_setup import Point
from torch._inductor.async_compile import maybe_warm_pool

from gpu_parts.arms import IMAGES, Built, build, describe, why_absent
from gpu_parts.context import Context
from gpu_parts.evidence import Heard, Memory, compilation, listening
from sdfast.data.parallel import seconds_waited

SETTLED = 5  # steps, after which sdfast's step, and the compiler's graphs, are as they stay
SLOW = 0.15  # seconds of a step, from which fewer are measured
SAMPLES, SAMPLE = 9, 0.15  # how many, and seconds of each
Row = dict[str, Any]


def warm(what: Row, device: str) -> None:
    """Make and read the model once, for every process that is forked later."""
    step_setup.shape_of(what["model"])
    step_setup._teacher_once(what["model"])
    if not what["arm"].startswith("sdfast"):
        step_setup.hugging_face(Point(what["stage"], what["model"], what["batch"]))


def point_of(context: Context) -> Point:
    what = context.what
    return Point(what["stage"], what["model"], what["batch"], context.device, 8 if context.quick else IMAGES)


def run(context: Context) -> Iterator[Row]:
    """One row."""
    name, point = context.what["arm"], point_of(context)
    reason = why_absent(name, point)
    if reason is not None:
        yield {"absent": reason}
        return
    if context.device == "cuda" and not context.quick:
        maybe_warm_pool()  # the compiler's processes begin while the models are built
    arm = describe(name, point, context.folder)
    facts = {"ours": arm.ours, "precision": arm.precision, "flops": arm.flops}
    try:
        with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True), listening() as heard:
            yield {**facts, **measure(name, point, context, heard)}
    finally:
        torch._dynamo.reset()


def measure(name: str, point: Point, context: Context, heard: Heard) -> Row:
    """Build, warm up, time."""
    data_of(point)
    memory = Memory(point.device)
    row: Row = {}
    built, run_step = started(name, point, context, row)
    row |= settle(run_step, point.device) | timed(run_step, point, context)
    with_graph = {**built.facts(), **compilation()}
    parts = run_step()
    synchronise(point.device)
    row["losses"] = {key: float(value) for key, value in parts.items()}
    if not all(abs(value) < float("inf") for value in row["losses"].values()):
        row["error"] = f"the loss is not finite: {row['losses']}"
    row["host_waits"] = host_waits(run_step, 2 if row["ms"] > 1e3 * SLOW else 5) if point.device == "cuda" else None
    row |= {**memory.row(), **with_graph, "compiled": with_graph["frames"] > 0}
    return {**row, "attention": heard.attention, "said": heard.said}


def data_of(point: Point) -> None:
    """Images and targets on the device, before memory is measured: every arm has some of them."""
    side = step_setup.MODELS[point.model].image
    step_setup.images_of(side, point.rows, point.device)
    if point.stage == "distill":
        step_setup.targets_of(point.model, point.rows, point.device)


def started(name: str, point: Point, context: Context, row: Row) -> tuple[Built, Callable[[], Any]]:
    """An arm after its first step, and its step in its precision; writes what building and that step took."""
    begun = time.perf_counter()
    tf32 = point.device == "cuda" and describe(name, point, context.folder).precision != "fp32"
    with matmul_precision(tf32):
        built = build(name, point, context.folder)

    def run_step() -> Any:
        with matmul_precision(tf32):
            return built.step()

    row["build_s"] = time.perf_counter() - begun
    begun = time.perf_counter()
    run_step()
    synchronise(point.device)
    row["first_step_s"] = time.perf_counter() - begun
    return built, run_step


def settle(run_step: Callable[[], Any], device: str) -> Row:
    """Run the steps in which it becomes what it stays."""
    begun = time.perf_counter()
    for _ in range(SETTLED):
        run_step()
    synchronise(device)
    return {"settling_s": time.perf_counter() - begun}


def timed(run_step: Callable[[], Any], point: Point, context: Context) -> Row:
    """Medians of samples of consecutive steps; beside them how long the host is busy with one."""
    one = seconds_of(run_step, 1, point.device)
    sample = 0.001 if context.quick else SAMPLE
    calls = calls_for(run_step, point.device, sample)
    for _ in range(0 if context.quick or one > SLOW else calls):
        run_step()  # clocks and caches as in a run
    waited, began = seconds_waited(), time.perf_counter()
    samples = 2 if context.quick else 4 if one > SLOW else SAMPLES
    seconds = [seconds_of(run_step, calls, point.device) for _ in range(samples)]
    wait_share = (seconds_waited() - waited) / (time.perf_counter() - began)
    middle = statistics.median(seconds)
    host = []
    for _ in range(3):
        synchronise(point.device)
        begun = time.perf_counter()
        run_step()
        host.append(time.perf_counter() - begun)
    figures = {"ms": middle * 1e3, "img/s": point.batch / middle, "sample_ms": [1e3 * each for each in seconds]}
    return {**figures, "host_ms": statistics.median(host) * 1e3, "wait_share": wait_share}
