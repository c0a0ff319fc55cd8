"""Supervised contrastive training on texts: the views of a text differ in their dropout (fidelity 6)."""

from __future__ import annotations

from torch import Tensor

from sdfast.data.order import Batch
from sdfast.data.text_batch import TokenBatch
from sdfast.errors import UserError
from sdfast.models.text import TextClassifier
from sdfast.objectives.base import ALL_SHORTCUTS, Shortcuts
from sdfast.objectives.contrastive import VIEWS, WHOLE_BATCH, contrastive_losses
from sdfast.objectives.text_classification import TextClassification
from sdfast.regularizers.mars import Mars
from sdfast.regularizers.recadam import Pull


class TextSupervisedContrastive(TextClassification):
    """Minimise the supervised contrastive loss of two views of each text, and the classifier's cross-entropy.

    Texts are not flipped: the two views go through the encoder with dropout of their own (as in SimCSE; Gao et al.,
    2021). The contrastive loss trains the encoder through a projection of the first token's last hidden state; the
    cross-entropy, a mean over texts and views, trains the classifier alone: the state it is given carries no gradient.
    Each text is compared with all others, so a batch is computed as a whole.
    """

    def __init__(
        self,
        module: TextClassifier,
        labels: Tensor,
        temperature: float,
        shortcuts: Shortcuts = ALL_SHORTCUTS,
        regularizer: Pull | Mars | None = None,
    ) -> None:
        """Set up.

        Args:
            module: the classifier, with a projection from `add_projection`.
            temperature: of the softmax.
            labels, shortcuts, regularizer: see `TextClassification`.
        """
        super().__init__(module, labels, shortcuts, regularizer=regularizer)
        self.temperature = temperature

    def loss(self, texts: TokenBatch, batch: Batch, drawn: None, part: slice) -> dict[str, Tensor]:
        """See `Objective.loss`; the parts are `loss_contrastive` and `loss_task`.

        Raises:
            UserError: these are not all of the batch's rows.
        """
        if len(texts) != batch.count:
            raise UserError(WHOLE_BATCH)
        module, views = self.module, TokenBatch(texts.ids.repeat(VIEWS), texts.lengths.repeat(VIEWS))
        first = module.first_states(module.encoder.embed(views), views.lengths, self.shortcuts.cls_tail)
        labels = self.labels[batch.rows[part].to(texts.ids.device, non_blocking=True)].repeat(VIEWS)
        projected = module.get_submodule("projection")(first)
        return contrastive_losses(projected, module.classify(first.detach()), labels, self.temperature)
