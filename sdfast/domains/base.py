"""The seam between a run and what it is trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from torch import Tensor, nn

from sdfast.config import MASK_RATIOS, Config, Modality, OptimisationConfig, PretrainConfig
from sdfast.data.order import BatchOrder
from sdfast.errors import UserError
from sdfast.objectives.base import Objective
from sdfast.teacher.recipe import BankRecipe
from sdfast.teacher.targets import Teacher

MaskedStage = Literal["head", "pretrain", "distill"]
Reader = Callable[[Tensor], Any]  # rows [B] int64 on the CPU -> what a model takes, on the device


@dataclass(frozen=True)
class Classifier:
    """A fine-tuned model from its folder.

    Attributes:
        module: float32, on the CPU.
        names: of its classes, by output.
        companions: what else the folder holds: an `ImageProcessor`, or `Companions`.
    """

    module: Any
    names: list[str]
    companions: Any


class Domain(Protocol):
    """One kind of data, for one run; its methods use the run's configuration, device, model and pack.

    Pre-trained models (`PretrainedMAE`, `PretrainedMLM`), packs and splits are those of the kind.

    Attributes:
        modality: the kind, and what its rows are called in sentences and inputs.
        unit: what a row is called beside a rate, and in `result.json`: `img_per_s`, `seq_per_s`.
        later: settings that came later: left out of a stage's inputs at these values, so that what was done before
            stays done.
        not_ours: sections and keys that say nothing here; left out of the inputs.
        masking: keys of `pretrain` that decide `distill` too.
        bundled_data: folder of the data that are used when none are given, and what they are called.
    """

    modality: Modality
    unit: Literal["img", "seq"]
    later: Mapping[str, Any]
    not_ours: frozenset[str]
    masking: frozenset[str]

    @property
    def bundled_data(self) -> tuple[Path, str]:
        """See above."""
        ...

    @property
    def companions(self) -> Any:
        """Of the initial model: see `Classifier`."""
        ...

    def check(self) -> None:
        """Refuse settings of the other kind, and those that do not fit the model.

        Raises:
            UserError: there is one.
        """
        ...

    def check_distill(self) -> None:
        """What would stop distill, before its teacher is trained.

        Raises:
            UserError: a setting that distill cannot do.
        """
        ...

    def check_bank(self, shape: Any) -> None:
        """The same for a bank of the features of a teacher of some shape."""
        ...

    def load(self, spec: str) -> Any:
        """The model as given, adapted to the settings."""
        ...

    def reload(self, folder: Path) -> Any:
        """The model that a stage left."""
        ...

    def describe(self, loaded: Any) -> str:
        """Its size, for the log."""
        ...

    def own_settings(self, loaded: Any) -> Mapping[str, Any]:
        """Keys of `pretrain` and the values that the model as given was trained with: they hold where none is given."""
        ...

    def prepare_pack(self, spec: str, directory: Path) -> Any:
        """The pack of a source for the initial model, built when need be."""
        ...

    def open_pack(self, directory: Path) -> Any:
        """A pack that is there."""
        ...

    def reader(self, split: Any) -> Reader:
        """The function that brings rows of a split to the device."""
        ...

    def order(self, split: Any, rows: Tensor, config: OptimisationConfig, seed: int) -> BatchOrder:
        """The batches of some rows."""
        ...

    def inputs(self, stage: str) -> dict[str, Any]:
        """What decides a stage's result beside content, settings and start, by name."""
        ...

    def head_steps(self) -> int:
        """Steps in which a newly made head is trained alone; 0 where there is none."""
        ...

    def masked(self, module: Any, stage: MaskedStage, seed: int, teacher: Any) -> Objective:
        """The objective of a stage that masks.

        Args:
            module: what is trained, on the device.
            stage: its name.
            seed: of masks and augmentation.
            teacher: of distill; None where it has no weight.

        Raises:
            UserError: masks that leave nothing to do.
        """
        ...

    def live_teacher(self, loaded: Any) -> Teacher:
        """A model as the teacher that runs beside the student."""
        ...

    def recipe(self, loaded: Any, pack: Any) -> BankRecipe:
        """What a model's bank is made from."""
        ...

    def check_deterministic(self, recipe: Any) -> None:
        """Read some rows of a bank twice, as training will.

        Raises:
            UserError: they differ, so that features of them cannot be kept.
        """
        ...

    def flops(self, stage: MaskedStage | Literal["finetune"], rows: Tensor) -> float:
        """Of the training step, for one row, in the mean."""
        ...

    def worth_of_zero(self, stage: str) -> str | None:
        """What the run's ZeRO stage saves, in one sentence; None where nobody knows."""
        ...

    def write(self, module: Any, folder: Path, stage: str, steps: int) -> None:
        """Write a trained model in Hugging Face format, and a card that says which stage made it in how many steps."""
        ...

    def classifier(self, start: Any, classes: int, seed: int) -> Any:
        """A classifier on the encoder of a module."""
        ...

    def classification(self, module: Any, labels: Tensor, seed: int) -> Objective:
        """The objective of finetune; labels [n] int64 on the device, by row of the split."""
        ...

    def predict(self, module: Any, companions: Any, split: Any, rows: Tensor) -> Tensor:
        """[n, classes] float32 on the CPU: logits of some rows, in evaluation mode."""
        ...

    def write_classifier(self, module: Any, folder: Path, names: list[str], steps: int) -> None:
        """Write a fine-tuned model in Hugging Face format, and its card."""
        ...

    def read_classifier(self, folder: Path) -> Classifier:
        """Read one."""
        ...

    def evaluation_pack(self, spec: str, directory: Path, classifier: Classifier) -> Any:
        """The pack of another source, all of it for evaluation, made for a classifier."""
        ...

    def fits(self, pack: Any, classifier: Classifier) -> bool:
        """Whether a pack was made for it."""
        ...

    def filled(self, state: dict[str, Tensor], classes: int | None) -> nn.Module:
        """A module of these tensors: a classifier, or the masked model when `classes` is None."""
        ...


def refuse_settings(config: Config, keys: Iterable[str], model: str, many: str) -> None:
    """Stop at settings that say nothing for a kind of data.

    Args:
        config: of the run.
        keys: dotted ones.
        model: what the user called the model.
        many: what it is trained on.

    Raises:
        UserError: one of them is not at its default.
    """
    for key in keys:
        name, field = key.split(".")
        section = getattr(config, name)
        value = getattr(section, field)
        if value != type(section).model_fields[field].default:
            raise UserError(f"{key}={value} says nothing for {model}, which is a model of {many}; leave it away.")


def with_own_settings(config: Config, own: Mapping[str, Any]) -> tuple[Config, list[str]]:
    """The configuration with a model's own settings where no key says otherwise.

    Args:
        config: of the run.
        own: see `Domain.own_settings`.

    Returns:
        The configuration, and a sentence for each setting that is not the usual one or not the model's.
    """
    usual = PretrainConfig().model_copy(update={"mask_ratio": MASK_RATIOS["images"], "norm_pix": True})
    taken, notes = {}, []
    for key, value in own.items():
        given = getattr(config.pretrain, key)
        if given is None:
            taken[key] = value
            if value != getattr(usual, key):
                notes.append(f"pretrain.{key}={_yaml(value)}, as it was pre-trained; give the key for another value.")
        elif given != value:
            notes.append(f"it was pre-trained with {key}={_yaml(value)}; pretrain.{key}={_yaml(given)}, as given.")
    pretrain = config.pretrain.model_copy(update=taken)
    return config.model_copy(update={"pretrain": pretrain}), notes


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}"


def labels_of(split: Any) -> np.ndarray:
    """[n] int64, of a split that has labels."""
    assert split.labels is not None
    return split.labels
