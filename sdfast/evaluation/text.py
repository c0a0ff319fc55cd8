"""Logits of a classifier of texts on the rows of a pack."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sdfast.data.order import sorted_batches
from sdfast.data.text_batch import TokenBatch
from sdfast.models.text import TextClassifier

_TOKENS = 8192  # of a batch


@torch.no_grad()
def predict_texts(
    module: TextClassifier, texts: Callable[[Tensor], TokenBatch], lengths: Tensor, rows: Tensor
) -> Tensor:
    """Logits in evaluation mode; texts of similar lengths go through the model together.

    Args:
        module: the classifier; put into evaluation mode.
        texts: rows [B] int64 -> their tokens on the module's device.
        lengths: [N] int64, tokens of every row of the split.
        rows: [n] int64, the rows to classify.

    Returns:
        [n, classes] float32 on the CPU, in the order of `rows`.
    """
    module.eval()
    logits = torch.zeros(len(rows), module.classifier.out_features)
    for batch in sorted_batches(torch.arange(len(rows)), lengths[rows], _TOKENS):
        logits[batch.rows] = module(texts(rows[batch.rows])).float().cpu()
    return logits
