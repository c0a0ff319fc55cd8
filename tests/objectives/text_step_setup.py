"""Small text models, texts and objectives, and the steps of the comparisons."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from small_stage import losses_of
from small_text_stage import SHAPES
from torch import Tensor

from sdfast.config import EngineConfig, PretrainConfig
from sdfast.data.order import Batch, BatchOrder
from sdfast.engine.loop import StageFolder, Trainer, TrainingData
from sdfast.modalities.texts.batch import TokenBatch
from sdfast.modalities.texts.checkpoint import fresh_mlm
from sdfast.modalities.texts.masking import TokenMasking
from sdfast.modalities.texts.model import Dropouts, MaskedLanguageModel
from sdfast.objectives.base import Objective

STEPS, BATCH, SEED, LR, ROWS = 20, 8, 6, 1e-3, 20
WORDS, PAD, MASK = 60, 1, 4
MASKING = TokenMasking(MASK, WORDS, (0, PAD, 2, MASK), rate=0.3)
SHAPE = SHAPES["roberta"]
_RNG = torch.Generator().manual_seed(1)
TEXTS = [torch.randint(5, WORDS, (length,), generator=_RNG) for length in torch.randint(2, 30, (ROWS,), generator=_RNG)]
LABELS = torch.arange(ROWS) % 3


def read(rows: Tensor) -> tuple[Tensor, Tensor]:
    texts = [torch.cat((torch.tensor([0]), TEXTS[row], torch.tensor([2]))) for row in rows.tolist()]
    return torch.cat(texts), torch.tensor([len(text) for text in texts])


def scrambled(
    seed: int,
    dtype: torch.dtype = torch.float64,
    dropouts: Dropouts = Dropouts(),  # noqa: B008
    kind: str = "roberta",
) -> MaskedLanguageModel:
    module = fresh_mlm(SHAPES[kind], seed, dropouts)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return module.to(dtype)


def order() -> BatchOrder:
    return BatchOrder(torch.arange(ROWS), BATCH, SEED)


def batches(steps: int = STEPS) -> list[Batch]:
    made = order()
    return [made.batch(step) for step in range(steps)]


def train(
    objective: Objective, directory: Path, steps: int = STEPS, accumulate: int = 1, config: Any = None
) -> list[dict[str, float]]:
    """The losses of every step, from the loop that users run."""
    reader: Callable[[Tensor], Any] = lambda rows: TokenBatch(*read(rows))  # noqa: E731
    trainer = Trainer(
        "test",
        objective,
        config or PretrainConfig(steps=steps, batch_size=BATCH, lr=LR),
        EngineConfig(log_every=1, accumulate=accumulate),
        TrainingData(order(), reader),
        StageFolder(directory, {}),
    )
    return losses_of(trainer)
