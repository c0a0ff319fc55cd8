"""The classifier's cross-entropy: weights of the classes and label smoothing, as torch's."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sdfast.config import FinetuneConfig
from sdfast.data.labels import known_classes
from sdfast.errors import UserError
from sdfast.regularizers.r3f import symmetric_kl

_SHOWN = 20  # classes in a sentence


class LabelLoss(ABC):
    """What is minimised of outputs and labels, whatever labels are."""

    @property
    def weighs_rows(self) -> bool:
        """Whether rows count differently, so that the divisor of a mean depends on their labels."""
        return False

    @abstractmethod
    def share(self, logits: Tensor, labels: Tensor, divisor: Tensor | int) -> Tensor:
        """0-D: what some rows of a batch contribute to its mean; see `divisor`."""

    def divisor(self, labels: Tensor) -> Tensor | int:
        """What the mean over a whole batch is divided by: its rows."""
        return len(labels)

    def mean(self, logits: Tensor, labels: Tensor) -> Tensor:
        """0-D, of all rows of a batch."""
        return self.share(logits, labels, self.divisor(labels))

    @abstractmethod
    def divergence(self, left: Tensor, right: Tensor) -> Tensor:
        """0-D: how far two outputs for the same rows are from each other, summed over the rows."""


@dataclass(frozen=True)
class CrossEntropy(LabelLoss):
    """What `torch.nn.functional.cross_entropy` is given beside logits and labels.

    Attributes:
        weights: [classes] float32, on the logits' device; None counts all alike.
        smoothing: share of the target that is spread evenly over all classes, 0 to 1.
    """

    weights: Tensor | None = None
    smoothing: float = 0.0

    @property
    def weighs_rows(self) -> bool:
        """Whether there are weights."""
        return self.weights is not None

    def mean(self, logits: Tensor, labels: Tensor) -> Tensor:
        """0-D, of all rows of a batch: logits [B, C] float32 or float64, labels [B] int64."""
        return F.cross_entropy(logits, labels, self._weights(logits), label_smoothing=self.smoothing)

    def share(self, logits: Tensor, labels: Tensor, divisor: Tensor | int) -> Tensor:
        """0-D: what some rows of a batch contribute to its mean.

        Args:
            logits: [b, C] float32 or float64.
            labels: [b] int64.
            divisor: of the whole batch, see `divisor`.
        """
        weights, smoothing = self._weights(logits), self.smoothing
        return F.cross_entropy(logits, labels, weights, reduction="sum", label_smoothing=smoothing) / divisor

    def divisor(self, labels: Tensor) -> Tensor | int:
        """What the mean over a whole batch is divided by: its rows, or the sum of their weights; labels [B] int64."""
        return len(labels) if self.weights is None else self.weights[labels].sum()

    def divergence(self, left: Tensor, right: Tensor) -> Tensor:
        """0-D: that of the softmax of logits [B, C], which knows neither weights nor smoothing."""
        return symmetric_kl(left, right)

    def _weights(self, logits: Tensor) -> Tensor | None:
        return None if self.weights is None else self.weights.to(logits.dtype)


PLAIN = CrossEntropy()


def cross_entropy_of(config: FinetuneConfig, labels: Tensor, classes: int) -> CrossEntropy:
    """The loss that the settings ask for.

    Args:
        config: of fine-tuning; weights by name are listed before, see `with_listed_weights`.
        labels: [n] int64 of the rows that are trained on.
        classes: how many there are.

    Returns:
        With weights on the labels' device.
    """
    given = config.class_weights
    if given == "none":
        return CrossEntropy(None, config.label_smoothing)
    assert not isinstance(given, dict)
    weights = balanced_weights(labels, classes) if given == "balanced" else torch.tensor(given, dtype=torch.float64)
    return CrossEntropy(weights.float().to(labels.device), config.label_smoothing)


def balanced_weights(labels: Tensor, classes: int) -> Tensor:
    """Weights with which every class counts the same in all, and the rows 1 in the mean.

    Args:
        labels: [n] int64.
        classes: how many there are.

    Returns:
        [classes] float64, n / (classes that have a row * rows of the class) as scikit-learn's `compute_class_weight`; 1
        for a class without a row.
    """
    counts = labels.bincount(minlength=classes).double()
    return torch.where(counts > 0, len(labels) / (int((counts > 0).sum()) * counts), 1.0)


def listed_weights(weights: Mapping[str, float], names: Sequence[str]) -> list[float]:
    """Weights by the classes' names as one for each class, in their order; 1 for a class that is not named.

    A name is that of a class as a label is: `1.0` is class 1.

    Raises:
        UserError: a name is no class's, or two are the same one's.
    """
    listed: dict[int, float] = {}
    for name, number in zip(weights, known_classes(list(weights), names), strict=True):
        if number is None:
            raise UserError(f"finetune.class_weights names {name!r}, which is no class; they are {_listed(names)}.")
        if number in listed:
            raise UserError(f"finetune.class_weights names the class {names[number]!r} twice; give it one weight.")
        listed[number] = float(weights[name])
    return [listed.get(number, 1.0) for number in range(len(names))]


def with_listed_weights(config: FinetuneConfig, names: Sequence[str]) -> FinetuneConfig:
    """The settings with a list in place of weights by name; see `listed_weights`."""
    given = config.class_weights
    if not isinstance(given, dict):
        return config
    return config.model_copy(update={"class_weights": tuple(listed_weights(given, names))})


def check_class_weights(config: FinetuneConfig, names: Sequence[str]) -> None:
    """Whether a list of weights has one for each class, and names are those of classes.

    Raises:
        UserError: it has more or fewer, or see `listed_weights`.
    """
    given = with_listed_weights(config, names).class_weights
    if not isinstance(given, str) and len(given) != len(names):
        raise UserError(
            f"finetune.class_weights has {len(given)} weights, and the data have {len(names)} classes; give one for"
            f" each, in this order: {_listed(names)}."
        )


def weights_note(weights: Tensor, names: Sequence[str]) -> str:
    """A sentence that names the weights: [classes], of as many classes."""
    return f"class weights: {_listed([f'{n} {w:.4g}' for n, w in zip(names, weights.tolist(), strict=True)])}"


def _listed(words: Sequence[str]) -> str:
    more = f" and {len(words) - _SHOWN:,} more" if len(words) > _SHOWN else ""
    return ", ".join(words[:_SHOWN]) + more
