"""What the loss returns."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class MaeDistillOutput(NamedTuple):
    """The loss and its two parts, 0-D tensors on the device of the inputs.

    Attributes:
        loss: ``mae_weight * mae + distill_weight * distill``; the only one that carries gradient.
        mae: the unweighted pixel part, detached; 0 when ``pred`` is absent.
        distill: the unweighted representation part, detached; 0 when ``student`` is absent.
    """

    loss: Tensor
    mae: Tensor
    distill: Tensor
