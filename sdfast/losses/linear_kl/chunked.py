"""Some rows at a time (`sdfast.losses.linear_chunks`): of both layers, whose logits are there together."""

from __future__ import annotations

import torch
from torch import Tensor

from sdfast.losses.linear_chunks import chunked_linear_loss, operands, product
from sdfast.losses.linear_kl.head import Head


def chunked_linear_kl(student: Head, teacher: Head, row_weights: Tensor) -> Tensor:
    """See `linear_kl`; the sum alone."""
    hidden, weight, bias = operands(*(None if each is None else each.detach() for each in teacher))  # type: ignore[arg-type]

    def row_loss(rows: slice, logits: Tensor, gradient: bool) -> Tensor:
        share = row_weights[rows, None].to(logits.dtype)
        theirs = product(hidden[rows], weight, bias).to(logits.dtype)
        for each in (logits, theirs):
            torch.ops.aten._log_softmax.out(each, 1, False, out=each)
        p = theirs.exp()
        loss = (theirs.sub_(logits).mul_(p).sum(dim=1, keepdim=True) * share).sum()
        if gradient:
            logits.exp_().sub_(p).mul_(share)
        return loss

    return chunked_linear_loss(*student, row_loss)
