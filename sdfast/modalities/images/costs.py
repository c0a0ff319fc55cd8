"""What a step on images asks of a machine."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from typing_extensions import override

from sdfast.config import Config
from sdfast.costs.measure import flops_of_one, once
from sdfast.costs.task import Flops, Step, Task, hollow, weights_of
from sdfast.data.order import Batch
from sdfast.modalities.images.families import of_classifier
from sdfast.modalities.images.masking import PatchMask, visible_count
from sdfast.modalities.images.model import MaskedAutoencoder, ViTClassifier, ViTShape
from sdfast.modalities.images.objectives import LabelledImages, MaskedImages
from sdfast.modalities.images.reader import Normalise
from sdfast.objectives.choose import classifier_objective, masked_objective


@dataclass(frozen=True)
class ImageTask(Task):
    """A stage on images, which are all of the model's size."""

    shape: ViTShape
    size, tokens = 1, 0

    @override
    def step(self, examples: int) -> Step:
        return image_step(self, examples)

    @override
    def flops(self, checkpointing: bool = False) -> Flops:
        def find() -> Flops:
            return Flops(*flops_of_one(self, image_step, checkpointing).tolist())

        return once(("flops", self.key, checkpointing), find)

    @property
    @override
    def example(self) -> int:
        values = self.shape.channels * self.shape.image_size[0] * self.shape.image_size[1]
        return values * np.dtype(self.config.data.pixels or "uint8").itemsize

    @property
    @override
    def features(self) -> int:
        return {"cls": 1, "patch": self.shape.patches, "all": self.shape.prefix + self.shape.patches}[
            self.config.distill.tokens
        ]


def image_step(task: ImageTask, images: int) -> Step:
    """A step on so many images.

    With `pretrain.mask=bernoulli` all have the mean number of masked patches, and padding is left out.
    """
    shape, config, batch = task.shape, task.config, Batch(0, torch.arange(images))
    pixels = torch.zeros((images, *shape.image_size, shape.channels), dtype=torch.uint8)
    normalise = Normalise((0.5,) * shape.channels, (0.25,) * shape.channels)
    if task.stage == "finetune":
        classifier = hollow(ViTClassifier, of_classifier(shape), task.classes, config.finetune.dropout)
        labels = torch.zeros(images, dtype=torch.int64)
        objective = classifier_objective(classifier, LabelledImages(normalise, 0.5, 0), labels, task.unanchored, 0)
        return Step(objective, pixels, objective.draw(batch), batch)
    count = {"cls": (), "patch": (shape.patches,), "all": (shape.prefix + shape.patches,)}[config.distill.tokens]
    teacher = task.teacher(MaskedAutoencoder, images, *count, shape.encoder.width)
    module = hollow(MaskedAutoencoder, shape)
    masked = masked_objective(module, MaskedImages(normalise, config.pretrain), config, task.stage, 0, teacher)
    return Step(masked, pixels, _patch_mask(config, shape.patches, images), batch, weights_of(teacher, task))


def _patch_mask(config: Config, patches: int, images: int) -> PatchMask:
    ratio, fixed = config.pretrain.patch_ratio, config.pretrain.mask == "fixed"
    visible = visible_count(patches, ratio) if fixed else round(patches * (1 - ratio))
    ids = torch.arange(patches).repeat(images, 1)
    masked_ids = ids[:, visible:].clone() if fixed else None
    return PatchMask(ids >= visible, ids[:, :visible].clone(), None, masked_ids)
