"""The specification: both linear layers, then the divergence of their softmax."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from sdfast.losses.linear_kl.head import Head


def reference_linear_kl(student: Head, teacher: Head, row_weights: Tensor) -> Tensor:
    """See `linear_kl`; the sum alone."""
    logits, targets = (F.linear(*head) for head in (student, teacher))
    dtype = torch.promote_types(logits.dtype, torch.float32)
    log_q, log_p = (F.log_softmax(each.to(dtype), dim=1) for each in (logits, targets.detach()))
    return (F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=1) * row_weights).sum()
