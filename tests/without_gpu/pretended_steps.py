"""One training step of every stage on tensors of a GPU that is not there, at the width of the paper's models."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal
from unittest import mock

import torch
from loss_launches import BATCH, ROWS, Recorder, multiprocessors_of_an_h100
from pretend_gpu import PretendGpu
from torch import Tensor

from sdfast.config import Config
from sdfast.data.order import Batch
from sdfast.engine.prepare import prepare, running_teacher
from sdfast.engine.single import SingleEngine
from sdfast.modalities.images.augment import Augmentation
from sdfast.modalities.images.model import MaskedAutoencoder, ViTClassifier, ViTShape
from sdfast.modalities.images.objectives import LabelledImages, MaskedImages
from sdfast.modalities.images.reader import Normalise
from sdfast.modalities.texts.batch import TokenBatch
from sdfast.modalities.texts.masking import TokenMasking
from sdfast.modalities.texts.model import Dropouts, MaskedLanguageModel, TextClassifier, TextShape
from sdfast.modalities.texts.objectives import LabelledTexts, MaskedTexts
from sdfast.models.blocks import TransformerShape
from sdfast.objectives.base import Objective
from sdfast.objectives.choose import classifier_objective, masked_objective, matches_features
from sdfast.objectives.cross_entropy import cross_entropy_of
from sdfast.ops.mae_distill import triton_backend
from sdfast.ops.mae_distill.arguments import Arguments
from sdfast.teacher.live import LiveTeacher
from sdfast.teacher.targets import ResidentBank

Stage = Literal["pretrain", "distill", "finetune"]

CUDA = torch.device("cuda")
CLASSES = 10
ENCODER = TransformerShape(768, 2, 12, 3072)
VIT = ViTShape((224, 224), 16, 3, ENCODER, TransformerShape(512, 2, 16, 2048))
ROBERTA = TextShape("roberta", 50_265, 514, 1, 1, ENCODER, 1e-5)
MASKING = TokenMasking(50_264, 50_265, (0, 1, 2, 3, 50_264))


def config_of(stage: Stage, overrides: list[str]) -> Config:
    given = ["engine.precision=bf16", "engine.compile=false", *overrides]
    return Config().resolved("images").changed([f"{stage}.batch_size={BATCH}", *given])


def bank(config: Config, width: int, tokens: int) -> ResidentBank:
    """Of rows in the dtype and of the tokens that are asked for."""
    shape = {"cls": (), "patch": (tokens - 1,), "all": (tokens,)}[config.distill.tokens]
    features = torch.zeros(ROWS, *shape, width, dtype=getattr(torch, config.teacher.dtype), device="cuda")
    scale = torch.ones(ROWS, *shape, device="cuda") if config.teacher.dtype == "int8" else None
    return ResidentBank(features, scale, torch.arange(ROWS)[None])


def image_objective(stage: Stage | Literal["head"], config: Config) -> Objective:
    """As `sdfast.modalities.images` makes it, of modules without numbers."""
    with CUDA:
        normalise = Normalise((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
        if stage == "finetune":
            classifier = ViTClassifier(VIT, CLASSES, config.finetune.dropout)
            labels = torch.zeros(ROWS, dtype=torch.int64)
        else:
            module, other = MaskedAutoencoder(VIT), MaskedAutoencoder(VIT)
    if stage == "finetune":
        views = LabelledImages(normalise, config.finetune.flip, 0)
        loss = cross_entropy_of(config.finetune, labels, CLASSES)
        return classifier_objective(classifier, views, labels, config, 0, loss)
    teacher: Any = None
    if stage == "distill":
        teacher = other
        if matches_features(config):
            live = config.teacher.mode == "live"
            teacher = LiveTeacher(other.encoder, config.distill.tokens) if live else bank(config, 768, 1 + VIT.patches)
    kind = config.pretrain.augment
    augment = None if kind == "none" else Augmentation(kind, 0)
    return masked_objective(module, MaskedImages(normalise, config.pretrain, augment), config, stage, 0, teacher)


def read(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Texts of 3 to 66 tokens, on the CPU."""
    lengths = 3 + rows % 64
    return torch.full((int(lengths.sum()),), 7), lengths


def text_objective(stage: Stage | Literal["head"], config: Config) -> Objective:
    """As `sdfast.modalities.texts` makes it, of modules without numbers."""
    dropouts = Dropouts(0.1, 0.0 if config.engine.attention == "varlen" else 0.1)  # which it does not have
    with CUDA:
        if stage == "finetune":
            classifier = TextClassifier(ROBERTA, CLASSES, dropouts)
            labels = torch.zeros(ROWS, dtype=torch.int64)
        else:
            module, other = MaskedLanguageModel(ROBERTA, dropouts), MaskedLanguageModel(ROBERTA)
    if stage == "finetune":
        loss = cross_entropy_of(config.finetune, labels, CLASSES)
        return classifier_objective(classifier, LabelledTexts(), labels, config, 0, loss)
    teacher: Any = None
    if stage == "distill":
        teacher = other
        if matches_features(config):
            teacher = LiveTeacher(other.encoder, "all" if config.distill.tokens == "all" else "cls")
            teacher = teacher if config.teacher.mode == "live" else bank(config, 768, 0)
    return masked_objective(module, MaskedTexts(read, MASKING, config.pretrain.mean), config, stage, 0, teacher)


@contextmanager
def loss_launches() -> Iterator[Recorder]:
    """The launches of the image and representation loss's kernel, which is left out."""
    recorder = Recorder()

    def launch(*operands: Any) -> Any:
        with multiprocessors_of_an_h100():
            return triton_backend.launch(Recorder(), recorder, Arguments(*operands))

    with mock.patch.object(triton_backend, "_launch_eagerly", launch):
        yield recorder


@dataclass
class Step:
    """What was seen of a step."""

    gpu: PretendGpu
    loss: Recorder
    parts: dict[str, Tensor]


def take_step(modality: Literal["images", "texts"], stage: Any, overrides: list[str]) -> Step:
    """A stage's step, watched: from its inputs on the device to the new weights."""
    config = config_of("pretrain" if stage == "head" else stage, overrides)
    settings = config.pretrain if stage == "head" else getattr(config, stage)
    make: Any = image_objective if modality == "images" else text_objective
    batch, gpu = Batch(0, torch.arange(BATCH)), PretendGpu()
    with gpu, loss_launches() as recorder:
        objective = make(stage, config)
        prepare(objective.module, config.engine, CUDA, settings.steps, teacher=running_teacher(objective))
        objective.module.train()
        engine = SingleEngine(objective, settings, config.engine, CUDA)
        if modality == "images":
            inputs: Any = torch.zeros(BATCH, 224, 224, 3, dtype=torch.uint8, device=CUDA)
        else:
            inputs = TokenBatch(*read(batch.rows)).to(CUDA)
        drawn = objective.draw(batch)
        with gpu.watched():
            parts = engine.step(inputs, batch, drawn, 0.1)
        for name, parameter in engine.parameters.items():
            assert parameter.grad is not None and parameter.grad.dtype == torch.float32, name
    return Step(gpu, recorder, parts)
