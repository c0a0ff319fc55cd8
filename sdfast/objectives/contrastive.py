"""Supervised contrastive training (Khosla et al., NeurIPS 2020) with a classifier beside it (fidelity 6)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdfast.data.order import Batch
from sdfast.errors import UserError
from sdfast.models.base import Classifier
from sdfast.objectives.base import ALL_SHORTCUTS, Shortcuts
from sdfast.objectives.classification import Classification, LabelledViews
from sdfast.objectives.cross_entropy import PLAIN, LabelLoss
from sdfast.regularizers.mars import Mars
from sdfast.regularizers.recadam import Pull

WHOLE_BATCH = (
    "finetune.objective=supcon compares each image or text with all others of the batch: run finetune in one process,"
    " with engine.accumulate=1 and without data.token_budget."
)
_BASE_TEMPERATURE = 0.07


class SupervisedContrastive(Classification):
    """Minimise the supervised contrastive loss of two views of each row, and the classifier's cross-entropy.

    The contrastive loss trains the encoder through a projection of the CLS token (of texts the first); the
    cross-entropy, a mean over rows and views, trains the classifier alone: the token it is given carries no gradient.
    Each row is compared with all others, so a batch is computed as a whole.
    """

    count = 2

    def __init__(
        self,
        module: Classifier,
        views: LabelledViews,
        labels: Tensor,
        temperature: float = _BASE_TEMPERATURE,
        shortcuts: Shortcuts = ALL_SHORTCUTS,
        regularizer: Pull | Mars | None = None,
        cross_entropy: LabelLoss = PLAIN,
    ) -> None:
        """Set up.

        Args:
            module: the classifier, with a projection from `add_projection`.
            temperature: of the softmax.
            views, labels, shortcuts, regularizer, cross_entropy: see `Classification`.
        """
        super().__init__(module, views, labels, shortcuts, regularizer=regularizer, cross_entropy=cross_entropy)
        self.temperature = temperature

    def loss(self, inputs: Any, batch: Batch, drawn: Any, part: slice) -> dict[str, Tensor]:
        """The loss of a whole batch; the parts are `loss_contrastive` and `loss_task`.

        Raises:
            UserError: these are not all of the batch's rows.
        """
        if len(inputs) != batch.count:
            raise UserError(WHOLE_BATCH)
        seen, labels = self._seen(inputs, batch, drawn, part)
        states = self.views.states(self.module, seen, self.shortcuts.cls_tail)
        projected = self.module.get_submodule("projection")(states)
        logits = self.views.classify(self.module, states.detach())
        return contrastive_losses(projected, logits, labels.repeat(self.count), self.temperature, self.cross_entropy)


def contrastive_losses(
    projected: Tensor, logits: Tensor, labels: Tensor, temperature: float, cross_entropy: LabelLoss = PLAIN
) -> dict[str, Tensor]:
    """The contrastive loss of all views of a batch, and beside it the classifier's cross-entropy.

    Args:
        projected: [N, P], what is compared.
        logits: [N, C], of what carries no gradient into the encoder.
        labels: [N] int64.
        temperature: see `supervised_contrastive_loss`.
        cross_entropy: weights of the classes and label smoothing, for the classifier alone.

    Returns:
        `loss` and its parts `loss_contrastive` and `loss_task`: see `Objective.loss`.
    """
    contrastive = supervised_contrastive_loss(projected, labels, temperature)
    task = cross_entropy.mean(logits.to(torch.promote_types(logits.dtype, torch.float32)), labels)
    return {"loss": contrastive + task, "loss_contrastive": contrastive.detach(), "loss_task": task.detach()}


def supervised_contrastive_loss(features: Tensor, labels: Tensor, temperature: float = _BASE_TEMPERATURE) -> Tensor:
    """Draw features of one class together, against all others.

    Features are brought to length 1. For each, the log-probability of the others of its class, in the softmax over all
    but itself of the products by `temperature`, is averaged; one that has no other of its class counts as 0. The mean
    over all features is negated, and multiplied by temperature / 0.07 as in the authors' code.

    Args:
        features: [N, D], any floating dtype; computed in float32 at least.
        labels: [N] int64, there too.
        temperature: above 0.

    Returns:
        0-D.
    """
    dtype = torch.promote_types(features.dtype, torch.float32)
    with torch.autocast(features.device.type, enabled=False):
        unit = F.normalize(features.to(dtype), dim=1)
        logits = unit @ unit.t() / temperature
    itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
    others = logits.masked_fill(itself, torch.finfo(dtype).min)
    log_p = logits - others.logsumexp(dim=1, keepdim=True)
    positive = (labels[:, None] == labels) & ~itself
    mean = log_p.where(positive, 0).sum(dim=1) / positive.sum(dim=1).clamp(min=1)
    return -(temperature / _BASE_TEMPERATURE) * mean.mean()


def add_projection(module: Classifier, width: int, seed: int) -> None:
    """Give a classifier a projection of its CLS or first token, D -> D -> ReLU -> `width`, new for `seed`.

    It is initialised as torch does it.
    """
    generator = torch.Generator().manual_seed(seed)
    inside = module.shape.encoder.width
    head = nn.Sequential(nn.Linear(inside, inside), nn.ReLU(), nn.Linear(inside, width)).to(module.classifier.weight)
    with torch.no_grad():
        for parameter in head.parameters():
            drawn = torch.empty(parameter.shape).uniform_(-(inside**-0.5), inside**-0.5, generator=generator)
            parameter.copy_(drawn)
    module.add_module("projection", head)


def drop_projection(module: Classifier) -> None:
    """Leave the classifier without the projection, if it has one."""
    if hasattr(module, "projection"):
        del module.projection


def without_projection(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """What `drop_projection` leaves of a classifier's tensors."""
    return {name: value for name, value in state.items() if not name.startswith("projection.")}
