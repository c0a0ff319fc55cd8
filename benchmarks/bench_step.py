"""Training steps on the CPU: the naive step, the honest baseline, and sdfast with its settings, in turns, in one run.

    pytest benchmarks/bench_step.py --benchmark-only --benchmark-json=F; python benchmarks/ratios.py F

A point is one stage of one model. Its arms are built first; each runs once untimed (compilation falls there and is
reported, not counted), then all take turns, and a plain matrix product takes its turn among them, so that whatever else
the machine does disturbs all alike; the product's fastest round is the machine's peak. Every point comes up once in
each of several sweeps, whose rounds are taken together: a disturbance that lasts minutes cannot fill a point's rounds.
float32, but for the arms named bf16; every arm runs with freed pages kept (sdfast.engine.machine), as sdfast's own loop
does: without, the Hugging Face arms would be the slower for a setting, not for their arithmetic. The naive step is also
timed before them with the allocator as installed, which is how its authors ran it. Name points to run fewer:
`-k "distill and ViT-S"`.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from honest import Speed
from step_clock import product, turns
from step_setup import (
    STAGES,
    Arm,
    Ours,
    Point,
    honest_arm,
    naive_arm,
    sdfast_arm,
    shortcuts_off,
)

from sdfast.engine.machine import freed_pages_kept
from sdfast.ops.linear.fp32_matmul import bf16x6_is_on

BATCHES = {"ViT-Ti/16": 16, "ViT-S/16": 8, "ViT-B/16": 4}
SWEEPS = 3
ROUNDS = {"ViT-Ti/16": 5, "ViT-S/16": 3, "ViT-B/16": 2}  # of a sweep
SHORTCUTS_SHOWN = ("ViT-Ti/16",)  # each switched off in turn; on the others that would take another two minutes
PRODUCT, INSTALLED = "float32 product", "naive, allocator as installed"
IEEE = "sdfast with ieee products"  # where its own are others: engine.fp32_products
SIZE, PRODUCTS = 1024, 20  # of a sample: about a quarter of a second on two cores


def arms_of(point: Point, directory: Path) -> dict[str, Arm]:
    """What is compared at a point. `sdfast` has the default settings: everything that is exact is on."""

    def ours(**how: Any) -> Arm:
        return sdfast_arm(point, directory, Ours(**how))

    arms = {
        "naive": naive_arm(point),
        "honest": honest_arm(point, Speed()),
        "honest compiled": honest_arm(point, Speed(compile="layers")),
        "honest bf16": honest_arm(point, Speed(bf16=True)),
        "honest bf16 compiled": honest_arm(point, Speed(bf16=True, compile="layers")),
        "sdfast": ours(),
        "sdfast bf16": ours(engine={"precision": "bf16"}),
    }
    if bf16x6_is_on():
        arms[IEEE] = ours(engine={"fp32_products": "ieee"})
    if point.stage == "distill":
        arms["sdfast live teacher"] = ours(teacher="live")
    if point.stage == "distill" and point.model in SHORTCUTS_SHOWN:
        arms |= {name: ours(engine=settings) for name, settings in shortcuts_off().items()}
    return arms


def measure(arms: dict[str, Arm], rounds: int) -> dict[str, dict[str, Any]]:
    """Samples of every arm and of the product, with the seconds that compilation took."""
    steps, first = {}, {}
    for name, arm in arms.items():
        steps[name] = arm.build()
        started = time.perf_counter()
        steps[name]()
        first[name] = time.perf_counter() - started
    steps[PRODUCT] = product(SIZE, torch.float32, "cpu")
    calls = {name: PRODUCTS if name == PRODUCT else 1 for name in steps}
    samples = turns(steps, calls, "cpu", rounds)
    rows: dict[str, dict[str, Any]] = {PRODUCT: {"seconds": samples[PRODUCT], "flops": 2 * SIZE**3}}
    for name, arm in arms.items():
        extra = max(0.0, first[name] - statistics.median(samples[name]))
        rows[name] = {"seconds": samples[name], "flops": arm.flops, "first_extra_s": extra}
    return rows


def as_installed(arm: Arm, rounds: int) -> dict[str, Any]:
    """The row of an arm that runs alone, outside of what keeps freed pages."""
    step = arm.build()
    step()
    return {"seconds": turns({"": step}, {"": 1}, "cpu", rounds)[""], "flops": arm.flops, "first_extra_s": 0.0}


@pytest.mark.parametrize("model", BATCHES)
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("sweep", range(SWEEPS))
def test_step(benchmark: Any, sweep: int, stage: str, model: str, tmp_path: Path) -> None:
    torch._dynamo.reset()
    point = Point(stage, model, BATCHES[model])
    arms = arms_of(point, tmp_path)
    alone = as_installed(arms["naive"], ROUNDS[model])
    # A compiled arm that fell back to eager for too many shapes would be a false baseline.
    with freed_pages_kept() as kept, torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        rows = {INSTALLED: alone, **measure(arms, ROUNDS[model])}
    benchmark.group = f"{point} float32"
    benchmark.extra_info.update(
        stage=stage,
        model=model,
        batch=point.batch,
        rows=rows,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        allocator="freed pages kept" if kept else "as installed",
        products="bf16x6" if bf16x6_is_on() else "ieee",
    )
    benchmark.pedantic(lambda: None, rounds=1)  # the samples are in extra_info
