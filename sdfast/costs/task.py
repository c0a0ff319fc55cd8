"""A stage's objective as a run assembles it, on weights and examples that have sizes but no content."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from sdfast.config import Config
from sdfast.data.masking import PatchMask, TokenMask, TokenMasking, visible_count
from sdfast.data.order import Batch
from sdfast.data.text_batch import TokenBatch
from sdfast.models.text import NO_DROPOUT, Dropouts, MaskedLanguageModel, TextClassifier, TextShape
from sdfast.models.vit import MaskedAutoencoder, ViTClassifier, ViTShape
from sdfast.objectives.base import Normalise, Objective
from sdfast.objectives.choose import classifier_objective, masked_objective, matches_features
from sdfast.objectives.images import LabelledImages, MaskedImages
from sdfast.objectives.texts import LabelledTexts, MaskedTexts
from sdfast.regularizers.choose import REGULARIZERS
from sdfast.teacher.live import LiveTeacher
from sdfast.teacher.targets import ResidentBank, Targets

Stage = Literal["head", "pretrain", "distill", "finetune"]
_Module = TypeVar("_Module", bound=nn.Module)
# Settings that decide what a step computes are among these sections; the others change no cost.
_DECIDING = ("pretrain", "distill", "finetune", "teacher", "engine")


@dataclass(frozen=True)
class Task:
    """What is to be measured.

    Attributes:
        stage: its name.
        config: of the run.
        shape: of the model.
        classes: outputs of the classifier, for `finetune`.
        dropouts: of a text model before `finetune`, which has a setting of its own.
        flash: attention weights are dropped where they are made, so that nothing is kept of it.
    """

    stage: Stage
    config: Config
    shape: ViTShape | TextShape
    classes: int = 10
    dropouts: Dropouts = NO_DROPOUT
    flash: bool = False

    @cached_property
    def key(self) -> str:
        """Two tasks of one key cost the same."""
        sections = self.config.model_dump(mode="json", include=set(_DECIDING))
        return json.dumps(
            [self.stage, repr(self.shape), self.classes, repr(self.text_dropouts), sections], sort_keys=True
        )

    @property
    def text_dropouts(self) -> Dropouts:
        """Dropout of a text model in this stage, as far as something is kept of it: see `flash`."""
        own = self.config.finetune.dropout
        given = Dropouts(own, own) if self.stage == "finetune" else self.dropouts
        return replace(given, attention=0.0) if self.flash else given

    @property
    def matched(self) -> Literal["features", "predictions", "weights"] | None:
        """What of a teacher has a weight in the loss."""
        distill = self.config.distill
        if self.stage != "distill" or not distill.weight:
            return None
        if matches_features(self.config):
            return "features"
        return "predictions" if distill.match == "predictions" else "weights"

    @property
    def unanchored(self) -> Config:
        """The settings, without a regularizer that only acts on the optimiser: it keeps a copy of the weights."""
        finetune = self.config.finetune
        if not REGULARIZERS[finetune.regularizer].noise:
            finetune = finetune.model_copy(update={"regularizer": "none"})
        return self.config.model_copy(update={"finetune": finetune})

    @property
    def inner_layer(self) -> bool:
        """Whether features are matched before the last block."""
        return self.matched == "features" and self.config.distill.layer != "last"

    @property
    def banked(self) -> bool:
        """Whether the teacher's features are read from a bank."""
        return self.matched == "features" and self.config.teacher.mode == "bank"

    def of_depth(self, depth: int) -> Task:
        """The same with so many blocks in the encoder."""
        return replace(self, shape=replace(self.shape, encoder=replace(self.shape.encoder, depth=depth)))


@dataclass(frozen=True)
class Step:
    """An objective, and a batch for it.

    Attributes:
        objective: in training mode.
        inputs: see `Objective.loss`.
        drawn: masks or flips.
        batch: its address.
        teacher: what is there of a teacher's weights, if anything.
    """

    objective: Objective
    inputs: Tensor | TokenBatch
    drawn: Any
    batch: Batch
    teacher: nn.Module | None = None

    @property
    def given(self) -> list[Tensor]:
        """What is there before the step: the examples, the labels, the teacher or its bank."""
        inputs = [self.inputs] if isinstance(self.inputs, Tensor) else [self.inputs.ids, self.inputs.lengths]
        found = [
            getattr(self.objective, "labels", None),
            getattr(getattr(self.objective, "teacher", None), "features", None),
        ]
        beside = [] if self.teacher is None else [*self.teacher.parameters(), *self.teacher.buffers()]
        return [*inputs, *beside, *(each for each in found if each is not None)]

    @property
    def addresses(self) -> list[Tensor]:
        """The tensors that masks and flips consist of."""
        some = [self.drawn] if isinstance(self.drawn, Tensor) else vars(self.drawn or self).values()
        return [each for each in some if isinstance(each, Tensor) and each is not self.inputs]

    def loss(self) -> Tensor:
        """The loss of the step: 0-D, with gradient."""
        return self.objective.loss(self.inputs, self.batch, self.drawn, slice(0, len(self.inputs)))["loss"]


def image_step(task: Task, images: int) -> Step:
    """A step on so many images.

    With `pretrain.mask=bernoulli` all have the mean number of masked patches, and padding is left out.
    """
    shape, config, batch = task.shape, task.config, Batch(0, torch.arange(images))
    assert isinstance(shape, ViTShape)
    pixels = torch.zeros((images, *shape.image_size, shape.channels), dtype=torch.uint8)
    normalise = Normalise((0.5,) * shape.channels, (0.25,) * shape.channels)
    if task.stage == "finetune":
        classifier = hollow(ViTClassifier, replace(shape, decoder=None), task.classes, config.finetune.dropout)
        labels = torch.zeros(images, dtype=torch.int64)
        objective = classifier_objective(classifier, LabelledImages(normalise, 0.5, 0), labels, task.unanchored, 0)
        return Step(objective, pixels, objective.draw(batch), batch)
    assert task.stage != "head"
    tokens, layer, width = config.distill.tokens, config.distill.layer, shape.encoder.width
    teacher: Any = None
    if task.banked:
        count = {"cls": (), "patch": (shape.patches,), "all": (1 + shape.patches,)}[tokens]
        teacher = _Bank(images, *count, width)
    elif task.matched is not None:
        teacher = hollow(MaskedAutoencoder, shape)
        teacher = LiveTeacher(teacher.encoder, tokens, layer) if task.matched == "features" else teacher
    module = hollow(MaskedAutoencoder, shape)
    masked = masked_objective(module, MaskedImages(normalise, config.pretrain), config, task.stage, 0, teacher)
    return Step(masked, pixels, _patch_mask(config, shape.patches, images), batch, _weights_of(teacher, task))


def text_step(task: Task, lengths: Sequence[int], masked: Sequence[int] = ()) -> Step:
    """A step on texts of so many tokens each, of which so many are masked (none in `finetune`)."""
    shape, config, batch = task.shape, task.config, Batch(0, torch.arange(len(lengths)))
    assert isinstance(shape, TextShape)
    texts = TokenBatch(torch.zeros(sum(lengths), dtype=torch.int64), torch.tensor(lengths))
    if task.stage == "finetune":
        classifier = hollow(TextClassifier, shape, task.classes, task.text_dropouts)
        labels = torch.zeros(len(lengths), dtype=torch.int64)
        return Step(classifier_objective(classifier, LabelledTexts(), labels, task.unanchored, 0), texts, None, batch)
    teacher: Any = None
    if task.banked:
        teacher = _Bank(len(texts.ids) if config.distill.tokens == "all" else len(texts), shape.encoder.width)
    elif task.matched is not None:
        teacher = hollow(MaskedLanguageModel, shape)
        if task.matched == "features":
            teacher = LiveTeacher(teacher.encoder, config.distill.tokens, config.distill.layer)
    module = hollow(MaskedLanguageModel, shape, task.text_dropouts)
    masking = TokenMasking(0, shape.vocabulary, (), config.pretrain.word_ratio)
    views = MaskedTexts(lambda rows: (texts.ids, texts.lengths), masking, config.pretrain.mean)
    objective = masked_objective(module, views, config, task.stage, 0, teacher)
    places = [first + torch.arange(some) for first, some in zip(texts.first.tolist(), masked, strict=True)]
    labels = torch.zeros(sum(masked), dtype=torch.int64)
    mask = TokenMask(texts, torch.cat(places), labels, torch.tensor(masked))
    return Step(objective, texts, mask, batch, _weights_of(teacher, task))


def hollow(make: Callable[..., _Module], *arguments: Any) -> _Module:
    """A module whose weights are allocated on the CPU, but never written: they take no memory until they are."""
    with torch.device("meta"):
        module = make(*arguments)
    state = {name: torch.empty(each.shape, dtype=each.dtype) for name, each in module.state_dict().items()}
    module.load_state_dict(state, assign=True)
    return module


class _Bank(ResidentBank):
    """A bank of which every batch asks for all rows."""

    def __init__(self, *size: int) -> None:
        super().__init__(torch.empty(size), None, torch.arange(size[0])[None])

    def targets(self, inputs: Any, rows: Tensor, epoch: int) -> Targets:
        """The whole bank, and all of its rows."""
        return Targets(self.features, self.bank_rows[0])


def _weights_of(teacher: Any, task: Task) -> nn.Module | None:
    """What is there of a teacher beside the student."""
    if not isinstance(teacher, nn.Module):
        return None
    return teacher.get_submodule("encoder") if task.matched == "weights" else teacher


def _patch_mask(config: Config, patches: int, images: int) -> PatchMask:
    ratio, fixed = config.pretrain.patch_ratio, config.pretrain.mask == "fixed"
    visible = visible_count(patches, ratio) if fixed else round(patches * (1 - ratio))
    ids = torch.arange(patches).repeat(images, 1)
    masked_ids = ids[:, visible:].clone() if fixed else None
    return PatchMask(ids >= visible, ids[:, :visible].clone(), None, masked_ids)
