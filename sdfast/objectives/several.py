"""The losses of labels that are several classes a row, or numbers; and which settings of fine-tuning act on which."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdfast.config import FinetuneConfig
from sdfast.data.problem import REGRESSION, SEVERAL, SINGLE, ProblemType
from sdfast.errors import UserError
from sdfast.objectives.cross_entropy import CrossEntropy, LabelLoss, check_class_weights, cross_entropy_of


@dataclass(frozen=True)
class BinaryCrossEntropy(LabelLoss):
    """`torch.nn.functional.binary_cross_entropy_with_logits`, the mean over rows and classes as in transformers.

    Attributes:
        pos_weight: [classes] float32 on the logits' device: how much a row that has the class counts against one that
            has not; None counts all alike.
        smoothing: each target of 0 or 1 is moved by half of this share towards the other.
    """

    pos_weight: Tensor | None = None
    smoothing: float = 0.0

    def share(self, logits: Tensor, labels: Tensor, divisor: Tensor | int) -> Tensor:
        """0-D: what some rows contribute to a batch's mean: logits [b, C], labels [b, C] 0 or 1; rows of the batch."""
        targets = labels.to(logits.dtype) * (1 - self.smoothing) + self.smoothing / 2
        weight = None if self.pos_weight is None else self.pos_weight.to(logits.dtype)
        total = F.binary_cross_entropy_with_logits(logits, targets, pos_weight=weight, reduction="sum")
        return total / (divisor * logits.shape[1])

    def divergence(self, left: Tensor, right: Tensor) -> Tensor:
        """0-D: KL(p || q) + KL(q || p) of the Bernoulli distributions of each class, summed over rows, mean of classes.

        The entropies cancel: of a class it is (p - q) times the difference of the logits.
        """
        return ((left.sigmoid() - right.sigmoid()) * (left - right)).sum() / left.shape[1]


@dataclass(frozen=True)
class SquaredError(LabelLoss):
    """The mean over rows and numbers of squared differences, as `torch.nn.functional.mse_loss`."""

    def share(self, logits: Tensor, labels: Tensor, divisor: Tensor | int) -> Tensor:
        """0-D: what some rows contribute to a batch's mean: outputs and labels [b, K]; rows of the batch."""
        return F.mse_loss(logits, labels.to(logits.dtype), reduction="sum") / (divisor * logits.shape[1])

    def divergence(self, left: Tensor, right: Tensor) -> Tensor:
        """0-D: squared differences, summed over rows, mean over numbers.

        That is KL(p || q) + KL(q || p) of normal distributions of deviation 1 around the two.
        """
        return (left - right).square().sum() / left.shape[1]


@dataclass(frozen=True)
class Scaling:
    """The units of numbers: fine-tuning is of (number - mean) / deviation.

    Attributes:
        mean, deviation: [K] float64, of the labelled training rows.
    """

    mean: Tensor
    deviation: Tensor

    @classmethod
    def of(cls, numbers: Tensor) -> Scaling:
        """That of some rows, [n, K]; the deviation is the population's, and 1 where all are equal."""
        exact = numbers.double().cpu()
        deviation = exact.std(dim=0, correction=0)
        return cls(exact.mean(dim=0), torch.where(deviation > 0, deviation, 1.0))

    def note(self, names: Sequence[str]) -> str:
        """A sentence with the mean and deviation of each number, by as many names."""
        each = zip(names, self.mean.tolist(), self.deviation.tolist(), strict=True)
        shown = [f"{name} {mean:.4g} ± {deviation:.4g}" for name, mean, deviation in each]
        return f"numbers of the training rows: {_listed(shown)}"

    def standardised(self, numbers: Tensor) -> Tensor:
        """[n, K] -> [n, K] float32; NaN stays NaN."""
        mean, deviation = self.mean.to(numbers.device), self.deviation.to(numbers.device)
        return ((numbers.double() - mean) / deviation).float()

    @torch.no_grad()
    def fold(self, head: nn.Linear) -> None:
        """Have a head, which gives standardised numbers, give them in the units of the data by its own weights.

        They are new tensors: what shares the ones before is left as it is.
        """
        mean, deviation = self.mean.to(head.weight.device), self.deviation.to(head.weight.device)
        head.weight.data = (head.weight.double() * deviation[:, None]).to(head.weight.dtype)
        head.bias.data = (head.bias.double() * deviation + mean).to(head.bias.dtype)


def label_loss(config: FinetuneConfig, problem: ProblemType, labels: Tensor, classes: int) -> LabelLoss:
    """The loss that the settings ask for.

    Args:
        config: of fine-tuning.
        problem: what labels are.
        labels: those of the rows that are trained on, on the device.
        classes: how many there are, or numbers.
    """
    if problem == SINGLE:
        return cross_entropy_of(config, labels, classes)
    if problem == REGRESSION:
        return SquaredError()
    given = config.class_weights
    if given == "none":
        return BinaryCrossEntropy(None, config.label_smoothing)
    weights = rarity_weights(labels) if given == "balanced" else torch.tensor(given, dtype=torch.float64)
    return BinaryCrossEntropy(weights.float().to(labels.device), config.label_smoothing)


def weights_of(loss: LabelLoss) -> Tensor | None:
    """[classes]: the weights of the classes in a loss, where it has any."""
    return loss.weights if isinstance(loss, CrossEntropy) else getattr(loss, "pos_weight", None)


def rarity_weights(labels: Tensor) -> Tensor:
    """[C] float64: rows without a class by rows with it, of labels [n, C]; 1 where either are none."""
    having = labels.double().sum(dim=0)
    lacking = len(labels) - having
    return torch.where((having > 0) & (lacking > 0), lacking / having.clamp(min=1), 1.0)


_REFUSED = {  # by key: its value without effect, what labels it is not for, and why
    "objective": ("cross_entropy", (SEVERAL, REGRESSION), "compares rows of one class each"),
    "sampling": ("uniform", (SEVERAL, REGRESSION), "takes as many rows of each class"),
    "class_weights": ("none", (REGRESSION,), "weighs classes"),
    "label_smoothing": (0.0, (REGRESSION,), "is of classes"),
}
_ROWS = {SEVERAL: "rows have several classes", REGRESSION: "labels are numbers"}


def check_problem(config: FinetuneConfig, problem: ProblemType, names: Sequence[str]) -> None:
    """Whether the settings of fine-tuning fit what the labels are.

    Args:
        config: of fine-tuning.
        problem: what labels are.
        names: of the classes or numbers.

    Raises:
        UserError: one does not.
    """
    for key, (idle, unfit, why) in _REFUSED.items():
        value = getattr(config, key)
        if problem in unfit and value != idle:
            more = ", or weigh the classes by finetune.class_weights=balanced" if (key, problem) == _WEIGHED else ""
            raise UserError(f"finetune.{key}={_shown(value)} {why}, and here {_ROWS[problem]}: leave it away{more}.")
    if problem != REGRESSION:
        check_class_weights(config, names)


_WEIGHED = ("sampling", SEVERAL)


def _listed(words: Sequence[str]) -> str:
    return ", ".join(words[:10]) + (f" and {len(words) - 10:,} more" if len(words) > 10 else "")


def _shown(value: object) -> str:
    return f"[{','.join(map(str, value))}]" if isinstance(value, tuple) else str(value)
