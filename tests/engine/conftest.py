"""A small stage to train."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sdfast.config import EngineConfig, FinetuneConfig, PretrainConfig
from sdfast.data.order import BatchOrder
from sdfast.engine.loop import Trainer
from sdfast.models.vit import MaskedAutoencoder, TransformerShape, ViTClassifier, ViTShape
from sdfast.objectives.base import Normalise, Objective
from sdfast.objectives.classification import Classification
from sdfast.objectives.pretraining import FurtherPretraining
from sdfast.teacher.live import LiveTeacher

SHAPE = ViTShape((16, 16), 4, 3, TransformerShape(32, 2, 2, 64), TransformerShape(16, 1, 2, 32))
IMAGES = torch.randint(0, 256, (50, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(50) % 4


def initialise(module: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)


def objective_of(stage: str) -> Objective:
    normalise = Normalise((0.5, 0.4, 0.3), (0.2, 0.3, 0.25))
    if stage == "finetune":
        classifier = ViTClassifier(SHAPE, 4, dropout=0.1)
        initialise(classifier, 2)
        return Classification(classifier, normalise, LABELS, flip=0.5, seed=5)
    module = MaskedAutoencoder(SHAPE)
    initialise(module, 2)
    if stage == "pretrain":
        return FurtherPretraining(module, normalise, PretrainConfig(), seed=5)
    teacher = MaskedAutoencoder(SHAPE)
    initialise(teacher, 3)
    return FurtherPretraining(module, normalise, PretrainConfig(), 5, LiveTeacher(teacher.encoder, "cls"))


@pytest.fixture
def make_trainer(tmp_path: Path) -> Callable[..., Trainer]:
    def make(
        stage: str,
        *,
        directory: Path = tmp_path,
        fingerprint: str = "f",
        flops_per_image: float | None = None,
        **engine: object,
    ) -> Trainer:
        torch.manual_seed(0)
        kind = FinetuneConfig if stage == "finetune" else PretrainConfig
        return Trainer(
            stage,
            objective_of(stage),
            kind(steps=12, batch_size=16, lr=1e-3),
            EngineConfig(log_every=4, **engine),  # type: ignore[arg-type]
            BatchOrder(torch.arange(50), 16, seed=9),
            lambda rows: IMAGES[rows],
            directory,
            {"identity": fingerprint},
            flops_per_image=flops_per_image,
        )

    return make
