"""Does cost grow as it should? Distillation steps of a small ViT over batch, image size and depth, against their FLOPs.

Each point is a bank step in float32. `extra_info` holds GFLOP per step, TFLOP/s, and bytes: predicted by
`sdfast.models.memory`, counted by torch's allocator, grown by the process. `python benchmarks/scaling_table.py FILE`
turns the JSON of a run into tables. `SDFAST_BENCH_LARGEST` (1 to 64, default 64) bounds the batch on slow machines.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sdfast.config import EngineConfig, PretrainConfig
from sdfast.data.masking import visible_count
from sdfast.data.order import BatchOrder
from sdfast.engine.accounting import shortcuts
from sdfast.engine.allocator import freed_pages_kept
from sdfast.engine.loop import Trainer
from sdfast.engine.resident import PeakGrowth
from sdfast.models.flops import StepSpec, step_flops
from sdfast.models.initialise import fresh_mae
from sdfast.models.memory import step_memory
from sdfast.models.vit import TransformerShape, ViTShape
from sdfast.objectives.base import Normalise
from sdfast.objectives.pretraining import FurtherPretraining
from sdfast.teacher.targets import ResidentBank

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LARGEST = int(os.environ.get("SDFAST_BENCH_LARGEST", "64"))
# A quarter of ViT-S's width, so that the largest points take seconds on two cores.
SMALL = ViTShape((128, 128), 16, 3, TransformerShape(192, 6, 3, 768), TransformerShape(128, 2, 4, 512))
POINTS = {
    "batch": [(SMALL, batch) for batch in (1, 2, 4, 8, 16, 32, 64) if batch <= LARGEST],
    "image size": [(replace(SMALL, image_size=(side, side)), 4) for side in (64, 96, 128, 192, 256, 384)],
    "depth": [(replace(SMALL, encoder=replace(SMALL.encoder, depth=depth)), 8) for depth in (2, 4, 8, 12, 16, 24)],
}


def trainer_of(shape: ViTShape, batch: int, directory: Path) -> tuple[Trainer, StepSpec]:
    height, width = shape.image_size
    images = torch.randint(0, 256, (batch, height, width, 3), dtype=torch.uint8).to(DEVICE)
    normalise = Normalise((0.5, 0.5, 0.5), (0.25, 0.25, 0.25)).to(DEVICE)
    bank = ResidentBank(torch.randn(batch, shape.encoder.width).to(DEVICE), None, torch.arange(batch))
    masking = PretrainConfig(batch_size=batch)
    objective = FurtherPretraining(fresh_mae(shape, 0).to(DEVICE), normalise, masking, 0, bank)
    order = BatchOrder(torch.arange(batch), batch, seed=0)
    engine = EngineConfig(precision="fp32")
    trainer = Trainer("distill", objective, masking, engine, order, lambda rows: images[rows], directory, {})
    objective.module.train()
    visible = visible_count(shape.patches, masking.mask_ratio)
    return trainer, StepSpec(shape, "distill", visible, shape.patches - visible, **shortcuts(engine))


def allocated(trainer: Trainer) -> int:
    """Bytes that torch's allocator holds at the worst moment of a step, model, optimiser state and batch included."""
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        trainer._one_step()
        return torch.cuda.max_memory_allocated()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        trainer._one_step()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    states = [value for state in trainer.optimizer.state.values() for value in state.values()]
    tensors = [*trainer.objective.module.parameters(), *states, trainer.images(torch.arange(len(trainer.order.rows)))]
    return peak + sum(tensor.nbytes for tensor in tensors)


@pytest.mark.parametrize(
    ("axis", "point"), [(axis, point) for axis, points in POINTS.items() for point in range(len(points))]
)
def test_scaling(benchmark: Any, axis: str, point: int, tmp_path: Path) -> None:
    shape, batch = POINTS[axis][point]
    growth = PeakGrowth()
    trainer, spec = trainer_of(shape, batch, tmp_path)

    def step() -> None:
        trainer._one_step()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    gflop = batch * step_flops(spec).total / 1e9
    rounds = max(3, min(9, int(500 / gflop)))
    benchmark.group = f"distill over {axis}, float32"
    with freed_pages_kept() if DEVICE.type == "cpu" else contextlib.nullcontext():
        benchmark.pedantic(step, rounds=rounds, warmup_rounds=2)
        resident = growth.bytes()
    benchmark.extra_info.update(
        axis=axis,
        batch=batch,
        side=shape.image_size[0],
        depth=shape.encoder.depth,
        gflop=gflop,
        tflops=gflop / 1e3 / benchmark.stats.stats.median,
        bytes_predicted=step_memory(spec, batch, cuda=DEVICE.type == "cuda", threads=torch.get_num_threads()).peak,
        bytes_allocated=allocated(trainer),
        bytes_grown=resident,
        threads=torch.get_num_threads(),
    )
