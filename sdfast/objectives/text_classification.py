"""Fine-tuning on texts: cross-entropy on the classifier of the first token, no augmentation."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sdfast.data.order import Batch
from sdfast.data.text_batch import TokenBatch
from sdfast.engine.optim import DecayRule
from sdfast.models.text import TextClassifier
from sdfast.objectives.base import ALL_SHORTCUTS, Shortcuts
from sdfast.regularizers.mars import Mars
from sdfast.regularizers.recadam import Pull


class TextClassification:
    """Minimise the mean cross-entropy over the batch (equation 1; fidelity 3.2).

    Biases and LayerNorms are not decayed, unlike in the image classifier: that is the texts' rule.
    """

    decay_rule: DecayRule = "pretrain"
    regularizer: Pull | Mars | None = None
    static = False  # see `Objective.static`: every batch has other lengths

    def __init__(self, module: TextClassifier, labels: Tensor, shortcuts: Shortcuts = ALL_SHORTCUTS) -> None:
        """labels: [n] int64 on the module's device, by row of the pack."""
        self.module, self.labels, self.shortcuts = module, labels, shortcuts

    def trained_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """All parameters."""
        yield from self.module.named_parameters()

    def announce(self, batch: Batch) -> None:
        """Nothing to do."""

    def draw(self, batch: Batch) -> None:
        """Nothing is random but dropout."""

    def loss(self, texts: TokenBatch, batch: Batch, drawn: None, part: slice) -> dict[str, Tensor]:
        """See `Objective.loss`."""
        logits = self.module(texts, self.shortcuts.cls_tail)
        labels = self.labels[batch.rows[part].to(texts.ids.device, non_blocking=True)]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))  # autocast gives bfloat16
        return {"loss": F.cross_entropy(logits, labels, reduction="sum") / batch.count}
