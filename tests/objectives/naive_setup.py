"""Images, batches and learning rates of the comparisons with the steps of `benchmarks/naive.py`."""

from __future__ import annotations

import torch
from torch import Tensor

from sdfast.data.order import Batch, BatchOrder
from sdfast.modalities.images.reader import Normalise
from sdfast.rng import STREAM_MASK, philox_bits

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
IMAGES = torch.randint(0, 256, (40, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
STEPS, BATCH, SEED, LR = 20, 16, 6, 1e-3


def batches() -> list[Batch]:
    order = BatchOrder(torch.arange(40), BATCH, SEED)
    return [order.batch(step) for step in range(STEPS)]


def decayed_rate(naive_step: object, step: int, lr: float = LR) -> None:
    for group in naive_step.optimizer.param_groups:  # type: ignore[attr-defined]
        group["lr"] = lr * (STEPS - step) / STEPS


def pixels_of(batch: Batch, dtype: torch.dtype) -> Tensor:
    return Normalise(MEAN, STD).to(dtype)(IMAGES[batch.rows])


def noise_of(batch: Batch, dtype: torch.dtype) -> Tensor:
    return philox_bits(SEED, batch.epoch, batch.rows, 16, STREAM_MASK).to(torch.float64)
