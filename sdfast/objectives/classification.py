"""Fine-tuning: the loss of labels on a classifier of the CLS token (of texts the first); R3F."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

from sdfast.data.order import Batch
from sdfast.models.base import Classifier
from sdfast.objectives.base import ALL_SHORTCUTS, DecayRule, Objective, Shortcuts
from sdfast.objectives.cross_entropy import PLAIN, LabelLoss
from sdfast.regularizers.mars import Mars
from sdfast.regularizers.r3f import R3F
from sdfast.regularizers.recadam import Pull


class LabelledViews(Protocol):
    """What images or texts give to the objectives with labels: random views of each row.

    Attributes:
        decay_rule, static: see `Objective`.
    """

    decay_rule: DecayRule
    static: bool

    def draw(self, batch: Batch, views: int) -> Any:
        """What is random in some views of this process's rows, drawn from their address."""

    def seen(self, inputs: Any, drawn: Any, views: int) -> Any:
        """What the classifier is given of some rows: their first views, and then their other ones."""

    def noise(self, module: Any, seen: Any, r3f: R3F) -> Tensor:
        """Noise for the embeddings of what is seen, of their shape."""

    def states(self, module: Any, seen: Any, cls_tail: bool) -> Tensor:
        """[views * b, D]: what the classifier's head is given."""

    def classify(self, module: Any, states: Tensor) -> Tensor:
        """[B, D] -> [B, classes]: what the head makes of it."""


class Classification(Objective):
    """Minimise the mean loss over the batch: cross-entropy (equation 1; fidelity 1.3, and 3.2 of texts), or another."""

    count = 1
    """How many views of each row are seen."""

    def __init__(
        self,
        module: Classifier,
        views: LabelledViews,
        labels: Tensor,
        shortcuts: Shortcuts = ALL_SHORTCUTS,
        r3f: R3F | None = None,
        regularizer: Pull | Mars | None = None,
        cross_entropy: LabelLoss = PLAIN,
    ) -> None:
        """Set up.

        Args:
            module: the classifier.
            views: what images or texts give: `LabelledImages` or `LabelledTexts`.
            labels: [n] int64 on the module's device, by row of the pack; [n, C] where rows have several, or numbers.
            shortcuts: which are taken.
            r3f: noise, and the weight of what it does to the output.
            regularizer: what acts on the optimiser.
            cross_entropy: the loss, with weights of the classes on the module's device.
        """
        self.module, self.views, self.labels, self.shortcuts = module, views, labels, shortcuts
        self.r3f, self.regularizer, self.cross_entropy = r3f, regularizer, cross_entropy
        self.decay_rule = views.decay_rule

    @property
    def static(self) -> bool:
        """Whether the views are static."""
        return self.views.static

    def draw(self, batch: Batch) -> Any:
        """What is random in the views: flips of images, nothing of texts."""
        return self.views.draw(batch, self.count)

    def loss(self, inputs: Any, batch: Batch, drawn: Any, part: slice) -> dict[str, Tensor]:
        """The rows' share of the batch's loss; with R3F the parts are `loss_task` and `loss_r3f`."""
        seen, labels = self._seen(inputs, batch, drawn, part)
        noise = None if self.r3f is None else self.views.noise(self.module, seen, self.r3f)
        logits = self.module(seen, self.shortcuts.cls_tail, noise)
        return classification_loss(
            logits, labels, batch.count, self.r3f, self.cross_entropy, self._divisor(batch, inputs.device)
        )

    def _divisor(self, batch: Batch, device: torch.device) -> Tensor | int:
        """What the mean over the whole batch is divided by."""
        if not self.cross_entropy.weighs_rows:
            return batch.count
        whole = batch.rows if batch.whole is None else batch.whole
        return self.cross_entropy.divisor(self.labels[whole.to(device, non_blocking=True)])

    def _seen(self, inputs: Any, batch: Batch, drawn: Any, part: slice) -> tuple[Any, Tensor]:
        """All views of some rows, and the rows' labels."""
        seen = self.views.seen(inputs, None if drawn is None else drawn[part], self.count)
        return seen, self.labels[batch.rows[part].to(inputs.device, non_blocking=True)]


def classification_loss(
    logits: Tensor,
    labels: Tensor,
    count: int,
    r3f: R3F | None = None,
    cross_entropy: LabelLoss = PLAIN,
    divisor: Tensor | int | None = None,
) -> dict[str, Tensor]:
    """The loss as a share of a batch's mean, and R3F's divergence.

    Args:
        logits: [B, C]; with `r3f` [2B, C], those of the noised input after the others.
        labels: [B] int64, or what the loss takes.
        count: rows of the whole batch.
        r3f: the weight of what its noise does to the output.
        cross_entropy: the loss; the divergence knows neither its weights nor its smoothing.
        divisor: with weights, their sum over the rows of the whole batch (0-D); `count` when not given.

    Returns:
        `loss`, and with `r3f` its parts `loss_task` and `loss_r3f`: see `Objective.loss`.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # autocast gives bfloat16
    divisor = count if divisor is None else divisor
    if r3f is None:
        return {"loss": cross_entropy.share(logits, labels, divisor)}
    clean, noised = logits.chunk(2)
    task = cross_entropy.share(clean, labels, divisor)
    smooth = r3f.weight * cross_entropy.divergence(clean, noised) / count
    return {"loss": task + smooth, "loss_task": task.detach(), "loss_r3f": smooth.detach()}
