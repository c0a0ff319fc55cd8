"""A small stage to train: model, images, labels, objectives, and the losses of every step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sdfast.config import PretrainConfig
from sdfast.data.order import BatchOrder
from sdfast.engine.loop import EngineConfig, StageFolder, Trainer, TrainingData
from sdfast.modalities.images.model import MaskedAutoencoder, ViTClassifier, ViTEncoder, ViTShape
from sdfast.modalities.images.objectives import LabelledImages, MaskedImages
from sdfast.modalities.images.reader import Normalise
from sdfast.models.blocks import TransformerShape
from sdfast.objectives.base import Objective
from sdfast.objectives.classification import Classification
from sdfast.objectives.contrastive import SupervisedContrastive, add_projection
from sdfast.objectives.masked import MaskedTraining
from sdfast.objectives.matching import PredictionMatching, WeightMatching
from sdfast.teacher.live import LiveTeacher

SHAPE = ViTShape((16, 16), 4, 3, TransformerShape(32, 2, 2, 64), TransformerShape(16, 1, 2, 32))
IMAGES = torch.randint(0, 256, (50, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(50) % 4
CPU = torch.device("cpu")
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)


def initialise(module: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)


def objective_of(
    stage: str,
    dtype: torch.dtype = torch.float32,
    masking: PretrainConfig | None = None,
    device: torch.device = CPU,
    **changes: Any,
) -> Objective:
    """The objective of a stage from fixed weights.

    `changes` are further arguments of its class; or `dropout`, `match` (what distill matches: features by default), or
    `supcon` (the width of a projection, for contrastive fine-tuning).
    """
    normalise = Normalise(MEAN, STD).to(device, dtype)
    if stage == "finetune":
        labelled = LabelledImages(normalise, flip=0.5, seed=5)
        classifier = ViTClassifier(SHAPE, 4, changes.pop("dropout", 0.1))
        initialise(classifier, 2)
        if width := changes.pop("supcon", 0):
            add_projection(classifier, width, 4)
            return SupervisedContrastive(classifier.to(device, dtype), labelled, LABELS.to(device), **changes)
        return Classification(classifier.to(device, dtype), labelled, LABELS.to(device), **changes)
    module = MaskedAutoencoder(SHAPE)
    initialise(module, 2)
    module, match = module.to(device, dtype), changes.pop("match", "features")
    masked = MaskedImages(normalise, masking or PretrainConfig(), changes.pop("augment", None))
    if match != "features":
        teacher = teacher_of(device, dtype)
        if match == "predictions":
            return PredictionMatching(module, masked, 5, teacher, **changes)
        return WeightMatching(module, masked, 5, teacher, "l2" if match == "weights-l2" else "mars", **changes)
    if stage == "distill" and "teacher" not in changes:
        changes["teacher"] = LiveTeacher(teacher_encoder(), changes.get("tokens", "cls")).to(device, dtype)
    return MaskedTraining(module, masked, 5, **changes)


def teacher_of(device: torch.device = CPU, dtype: torch.dtype = torch.float32) -> MaskedAutoencoder:
    teacher = MaskedAutoencoder(SHAPE)
    initialise(teacher, 3)
    return teacher.to(device, dtype)


def teacher_encoder() -> ViTEncoder:
    return teacher_of().encoder


def trainer_of(objective: Objective, directory: Path) -> Trainer:
    """Twelve steps of an objective on the images."""
    config, order = PretrainConfig(steps=12, batch_size=16, lr=1e-3), BatchOrder(torch.arange(50), 16, seed=9)
    data, folder = TrainingData(order, lambda rows: IMAGES[rows]), StageFolder(directory, {"a": "b"})
    return Trainer("distill", objective, config, EngineConfig(log_every=4), data, folder)


def losses_of(trainer: Trainer) -> list[dict[str, float]]:
    """Train to the end; the parts of the loss at every step."""
    records = []
    step = trainer.step

    def recording() -> dict[str, Tensor]:
        parts = step()
        records.append({name: float(value) for name, value in parts.items()})
        return parts

    trainer.step = recording  # type: ignore[method-assign]
    trainer.run()
    return records
