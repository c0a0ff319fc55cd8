"""Training steps of a small ViT over batch, image size and depth, float32 on a CPU: is there a cliff anywhere?

    pytest benchmarks/bench_scaling.py --benchmark-only --benchmark-json=F; python benchmarks/scaling_table.py F

A step of `distill` from a bank in memory, with every shortcut, and AdamW; freed pages stay with the process, as in
training. Memory is what torch's allocator gives in one forward and backward pass, beside what `sdfast.costs` says.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import losses_setup as setup
import pytest
import torch
from step_clock import allocated

from sdfast.config import Config, PretrainConfig
from sdfast.costs.measure import moments
from sdfast.data.order import Batch
from sdfast.modalities.images.costs import ImageTask
from sdfast.modalities.images.model import MaskedAutoencoder, ViTShape
from sdfast.modalities.images.objectives import MaskedImages
from sdfast.modalities.images.reader import Normalise
from sdfast.models.blocks import TransformerShape
from sdfast.objectives.masked import MaskedTraining
from sdfast.teacher.targets import ResidentBank

BATCH, SIZE, DEPTH = 8, 96, 4
AXES: dict[str, list[tuple[int, int, int]]] = {
    "batch": [(batch, SIZE, DEPTH) for batch in (1, 2, 4, 8, 16, 32, 64)],
    "image size": [(BATCH, size, DEPTH) for size in (64, 96, 128, 192, 256, 384)],
    "depth": [(BATCH, SIZE, depth) for depth in (2, 4, 8, 12, 24)],
}
ROUNDS = 9


@pytest.fixture(scope="module", autouse=True)
def kept_pages() -> Iterator[None]:
    with setup.pages_kept():
        yield


def objective_of(shape: ViTShape, batch: int) -> MaskedTraining:
    """The objective of a stage on `batch` images, its features drawn."""
    features = torch.randn(batch, shape.encoder.width, generator=torch.Generator().manual_seed(1))
    bank = ResidentBank(features, None, torch.arange(batch)[None])
    normalise = Normalise((0.5,) * 3, (0.25,) * 3)
    objective = MaskedTraining(MaskedAutoencoder(shape), MaskedImages(normalise, PretrainConfig()), 0, bank)
    objective.module.train()
    return objective


def product_flops_per_second(size: int = 1024, rounds: int = 5) -> float:
    """Of a square matrix product, the fastest of a few: whether the machine was itself around a point."""
    factor, best = torch.full((size, size), 1 / 64), float("inf")
    for _ in range(rounds):
        started = time.perf_counter()
        factor @ factor
        best = min(best, time.perf_counter() - started)
    return 2 * size**3 / best


@pytest.mark.parametrize(
    ("axis", "batch", "size", "depth"),
    [(axis, *point) for axis, points in AXES.items() for point in points],
)
def test_point(axis: str, batch: int, size: int, depth: int, benchmark: Any) -> None:
    torch.manual_seed(0)
    shape = ViTShape((size, size), 16, 3, TransformerShape(192, depth, 3, 768), TransformerShape(128, 2, 4, 512))
    objective = objective_of(shape, batch)
    images = torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8)
    address = Batch(0, torch.arange(batch))
    optimizer = torch.optim.AdamW([p for _, p in objective.trained_parameters() if p.requires_grad], fused=True)

    def gradients() -> None:
        drawn = objective.draw(address)
        objective.loss(images, address, drawn, slice(0, batch))["loss"].backward()

    def step() -> None:
        gradients()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    task = ImageTask("distill", Config(), shape)
    memory, flops = max(map(sum, moments(task).at(batch))), batch * task.flops().step
    step()
    measured = allocated(gradients)
    optimizer.zero_grad(set_to_none=True)
    product = product_flops_per_second()
    benchmark.group = axis
    benchmark.pedantic(step, rounds=ROUNDS, warmup_rounds=1)
    product = max(product, product_flops_per_second())
    seconds = benchmark.stats.stats.median
    benchmark.extra_info.update(
        axis=axis,
        point={"batch": batch, "image size": size, "depth": depth},
        ms=seconds * 1e3,
        img_per_s=batch / seconds,
        gflop=flops / 1e9,
        tflops=flops / seconds / 1e12,
        tflops_fastest=flops / benchmark.stats.stats.min / 1e12,
        product_tflops=product / 1e12,
        memory_mb=measured / 1e6,
        memory_predicted_mb=memory / 1e6,
        threads=torch.get_num_threads(),
        torch=torch.__version__,
    )
