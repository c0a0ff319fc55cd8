"""Fine-tuning on texts: cross-entropy on the classifier of the first token, no augmentation; R3F."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from sdfast.data.order import Batch
from sdfast.data.text_batch import TokenBatch
from sdfast.engine.optim import DecayRule
from sdfast.models.text import TextClassifier
from sdfast.objectives.base import ALL_SHORTCUTS, Shortcuts
from sdfast.objectives.classification import classification_loss
from sdfast.regularizers.mars import Mars
from sdfast.regularizers.r3f import R3F
from sdfast.regularizers.recadam import Pull


class TextClassification:
    """Minimise the mean cross-entropy over the batch (equation 1; fidelity 3.2).

    Biases and LayerNorms are not decayed, unlike in the image classifier: that is the texts' rule.
    """

    decay_rule: DecayRule = "pretrain"
    static = False  # see `Objective.static`: every batch has other lengths

    def __init__(
        self,
        module: TextClassifier,
        labels: Tensor,
        shortcuts: Shortcuts = ALL_SHORTCUTS,
        r3f: R3F | None = None,
        regularizer: Pull | Mars | None = None,
    ) -> None:
        """Set up.

        Args:
            module: the classifier.
            labels: [n] int64 on the module's device, by row of the pack.
            shortcuts: which are taken.
            r3f: noise, and the weight of what it does to the output.
            regularizer: what acts on the optimiser.
        """
        self.module, self.labels, self.shortcuts = module, labels, shortcuts
        self.r3f, self.regularizer = r3f, regularizer

    def trained_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """All parameters."""
        yield from self.module.named_parameters()

    def announce(self, batch: Batch) -> None:
        """Nothing to do."""

    def draw(self, batch: Batch) -> None:
        """Nothing is random but dropout and noise."""

    def loss(self, texts: TokenBatch, batch: Batch, drawn: None, part: slice) -> dict[str, Tensor]:
        """See `Objective.loss`; with R3F the parts are `loss_task` and `loss_r3f`."""
        noise = None
        if self.r3f is not None:
            size = (len(texts.ids), self.module.shape.encoder.width)
            noise = self.r3f.draw(size, texts.ids.device, self.module.encoder.word_embeddings.weight.dtype)
        logits = self.module(texts, self.shortcuts.cls_tail, noise)
        labels = self.labels[batch.rows[part].to(texts.ids.device, non_blocking=True)]
        return classification_loss(logits, labels, batch.count, self.r3f)
