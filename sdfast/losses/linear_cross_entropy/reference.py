"""The specification: the linear layer, then the cross-entropy."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def reference_linear_cross_entropy(
    hidden: Tensor, weight: Tensor, bias: Tensor | None, labels: Tensor, row_weights: Tensor
) -> Tensor:
    """See `linear_cross_entropy`; the sum alone."""
    logits = F.linear(hidden, weight, bias)
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return (F.cross_entropy(logits, labels, reduction="none") * row_weights).sum()
