"""What a linear probe's head is given: features that are standardised by the rows that it is trained on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sdfast.context import Context
from sdfast.log import log
from sdfast.models.standardised import Moments, Standard, first_layer, mean_and_deviation


def standardise_features(context: Context, module: Any) -> None:
    """Have a classifier's head be given features of mean 0 and deviation 1 over the training rows of `finetune`.

    They are computed once, in evaluation mode and without flips, by all processes together. Of a head that sees every
    token, as a EuroBERT's, the rows are all tokens. A ModernBERT's has no bias, as a rule, into which the mean could be
    folded: it is given features as they are.

    Args:
        context: of the run.
        module: the classifier, on the device; what its features go through is changed in place.
    """
    layer = first_layer(module)
    if layer.bias is None:
        log.info("finetune: features stay as they are: the head's first layer has no bias, which would take their mean")
        return
    count, sums = _moments(context, module, layer.in_features)
    module.standard = Standard(*(each.to(layer.weight) for each in mean_and_deviation(count, sums)))
    rows = len(context.train_rows("finetune"))
    log.info("finetune: the head sees features standardised over %d training %s", rows, context.modality.name)


def _moments(context: Context, module: Any, width: int) -> tuple[int, Tensor]:
    """Rows of features, and their sums; each process has the same."""
    modality, train, rows = context.modality, context.train_of("finetune"), context.train_rows("finetune")
    training, module.standard = module.training, Moments(width)
    share = rows[context.ranks.part(len(rows))]
    modality.predict(module, modality.companions(context.model), train, share, context.read(train))
    module.train(training)
    counts, sums = zip(*context.ranks.exchange((module.standard.count, module.standard.sums)), strict=True)
    return sum(counts), torch.stack(sums).sum(dim=0)
