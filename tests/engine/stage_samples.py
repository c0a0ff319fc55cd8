"""Images, labels and objectives of a small stage."""

from __future__ import annotations

import torch

from sdfast.config import PretrainConfig
from sdfast.models.vit import MaskedAutoencoder, TransformerShape, ViTClassifier, ViTShape
from sdfast.objectives.base import Normalise, Objective
from sdfast.objectives.classification import Classification
from sdfast.objectives.pretraining import FurtherPretraining
from sdfast.teacher.live import LiveTeacher

SHAPE = ViTShape((16, 16), 4, 3, TransformerShape(32, 2, 2, 64), TransformerShape(16, 1, 2, 32))
IMAGES = torch.randint(0, 256, (50, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(50) % 4
CPU = torch.device("cpu")


def initialise(module: torch.nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)


def objective_of(stage: str, device: torch.device) -> Objective:
    normalise = Normalise((0.5, 0.4, 0.3), (0.2, 0.3, 0.25)).to(device)
    if stage == "finetune":
        classifier = ViTClassifier(SHAPE, 4, dropout=0.1)
        initialise(classifier, 2)
        return Classification(classifier.to(device), normalise, LABELS.to(device), flip=0.5, seed=5)
    module = MaskedAutoencoder(SHAPE)
    initialise(module, 2)
    module.to(device)
    if stage == "pretrain":
        return FurtherPretraining(module, normalise, PretrainConfig(), seed=5)
    teacher = MaskedAutoencoder(SHAPE)
    initialise(teacher, 3)
    return FurtherPretraining(module, normalise, PretrainConfig(), 5, LiveTeacher(teacher.encoder, "cls").to(device))
