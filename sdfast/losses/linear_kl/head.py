"""A linear layer and what it is given."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Head(NamedTuple):
    """Predictions that have not been made yet: hidden [M, D], weight [V, D], bias [V] or None."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
