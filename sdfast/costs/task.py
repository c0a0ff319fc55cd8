"""A stage's objective as a run assembles it, on weights and examples that have sizes but no content."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple, TypeVar

import torch
from torch import Tensor, nn
from typing_extensions import Self

from sdfast.config import Config
from sdfast.data.order import Batch
from sdfast.models.base import MaskedModel
from sdfast.objectives.base import Objective
from sdfast.objectives.choose import matches_features
from sdfast.regularizers.choose import REGULARIZERS
from sdfast.teacher.live import LiveTeacher
from sdfast.teacher.targets import ResidentBank, Targets

Stage = Literal["head", "pretrain", "distill", "finetune"]
_Module = TypeVar("_Module", bound=nn.Module)
# Settings that decide what a step computes are among these sections; the others change no cost.
_DECIDING = ("pretrain", "distill", "finetune", "teacher", "engine")


class Flops(NamedTuple):
    """FLOPs of a step.

    Attributes:
        step: forward and backward.
        again: of what activation checkpointing computes once more, where that was asked for; else 0.
    """

    step: float
    again: float


@dataclass(frozen=True)
class Task(ABC):
    """What is to be measured.

    Attributes:
        stage: its name.
        config: of the run.
        shape: of the model.
        classes: outputs of the classifier, for `finetune`.
        flash: attention weights are dropped where they are made, so that nothing is kept of it.
    """

    stage: Stage
    config: Config
    shape: Any
    classes: int = 10
    flash: bool = False

    @abstractmethod
    def step(self, examples: int) -> Step:
        """A step on so many examples of which memory is measured."""

    @property
    @abstractmethod
    def size(self) -> int:
        """What such an example counts for, as memory grows: its tokens, or 1."""

    @property
    @abstractmethod
    def tokens(self) -> int:
        """Tokens of the largest example; 0 of images."""

    @abstractmethod
    def flops(self, checkpointing: bool = False) -> Flops:
        """FLOPs of a step on one of the largest examples; with `checkpointing`, what that does again is found too."""

    @property
    @abstractmethod
    def example(self) -> int:
        """Bytes of the largest example in the pack, and in a batch."""

    @property
    @abstractmethod
    def features(self) -> int:
        """Rows of features that a bank keeps of an example."""

    @property
    def more(self) -> str:
        """What decides the costs beside the fields and the settings."""
        return ""

    @cached_property
    def key(self) -> str:
        """Two tasks of one key cost the same."""
        sections = self.config.model_dump(mode="json", include=set(_DECIDING))
        return json.dumps([self.stage, repr(self.shape), self.classes, self.more, sections], sort_keys=True)

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

    def teacher(self, make: Callable[[Any], MaskedModel], *bank: int) -> Any:
        """What the objective is given of a teacher: a bank of that size, a live one, a model, or None."""
        if self.banked:
            return HollowBank(*bank)
        if self.matched is None:
            return None
        model, distill = hollow(make, self.shape), self.config.distill
        return LiveTeacher(model.encoder, distill.tokens, distill.layer) if self.matched == "features" else model

    @property
    def section(self) -> Any:
        """How the stage is optimised; a new head as `pretrain`."""
        return getattr(self.config, "pretrain" if self.stage == "head" else self.stage)

    @property
    def uneven(self) -> bool:
        """Whether blocks are not all alike: features are matched before the last one, or some are trained in full."""
        if self.matched == "features" and self.config.distill.layer != "last":
            return True
        return self.section.method == "lora" and self.section.lora.full_blocks > 0

    @property
    def banked(self) -> bool:
        """Whether the teacher's features are read from a bank."""
        return self.matched == "features" and self.config.teacher.mode == "bank"

    def of_depth(self, depth: int) -> Self:
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
    inputs: Any
    drawn: Any
    batch: Batch
    teacher: nn.Module | None = None

    @property
    def given(self) -> list[Tensor]:
        """What is there before the step: the examples, the labels, the teacher or its bank."""
        found = [
            getattr(self.objective, "labels", None),
            getattr(getattr(self.objective, "teacher", None), "features", None),
        ]
        beside = [] if self.teacher is None else [*self.teacher.parameters(), *self.teacher.buffers()]
        return [*_tensors(self.inputs), *beside, *(each for each in found if each is not None)]

    @property
    def addresses(self) -> list[Tensor]:
        """The tensors that masks and flips consist of."""
        return [] if self.drawn is None else _tensors(self.drawn)

    def loss(self) -> Tensor:
        """The loss of the step: 0-D, with gradient."""
        return self.objective.loss(self.inputs, self.batch, self.drawn, slice(0, len(self.inputs)))["loss"]


def hollow(make: Callable[..., _Module], *arguments: Any) -> _Module:
    """A module whose weights are allocated on the CPU, but never written: they take no memory until they are."""
    with torch.device("meta"):
        module = make(*arguments)
    state = {name: torch.empty(each.shape, dtype=each.dtype) for name, each in module.state_dict().items()}
    module.load_state_dict(state, assign=True)
    return module


class HollowBank(ResidentBank):
    """A bank of which every batch asks for all rows."""

    def __init__(self, *size: int) -> None:
        super().__init__(torch.empty(size), None, torch.arange(size[0])[None])

    def targets(self, inputs: Any, rows: Tensor, epoch: int) -> Targets:
        """The whole bank, and all of its rows."""
        return Targets(self.features, self.bank_rows[0])


def weights_of(teacher: Any, task: Task) -> nn.Module | None:
    """What is there of a teacher beside the student."""
    if not isinstance(teacher, nn.Module):
        return None
    return teacher.get_submodule("encoder") if task.matched == "weights" else teacher


def _tensors(value: Any) -> list[Tensor]:
    """A tensor, or those that a value directly has."""
    return [
        each for each in ([value] if isinstance(value, Tensor) else vars(value).values()) if isinstance(each, Tensor)
    ]
