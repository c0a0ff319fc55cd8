"""MARS-PGM (Gouk et al., ICLR 2021): after each step every row of a weight is brought back to within a radius.

The distance of a weight from its anchor is the largest sum of |W_ji - W0_ji| over a row, a row being what feeds one
output. As in the authors' code each row is shrunk by itself towards the anchor's, t <- t / max(1, ||t||_1 / radius) for
t = W_j - W0_j: a radial map, not the nearest point, that leaves a row within the radius as it is, bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Constraint:
    """A weight [out, ...], the anchor of the same shape, and the radius of its rows, above 0 (infinite is none)."""

    weight: Tensor
    anchor: Tensor
    radius: float


class Mars:
    """Keeps weights within their radii."""

    def __init__(self, constraints: Iterable[Constraint]) -> None:
        constraints = list(constraints)
        if any(not each.radius > 0 for each in constraints):
            raise ValueError("a radius must be above 0")
        self._weights = [each.weight.detach().flatten(1) for each in constraints]  # views: rows are outputs
        self._anchors = [each.anchor.detach().flatten(1) for each in constraints]
        self._radii = [each.radius for each in constraints]

    @torch.no_grad()
    def project(self) -> None:
        """Shrink the rows that have left their radius; nothing waits for the device."""
        # Norms by row have no foreach form; one weight after the other stays in the cache.
        shrink = [
            torch.linalg.vector_norm(weight - anchor, 1, dim=1, keepdim=True)
            for weight, anchor in zip(self._weights, self._anchors, strict=True)
        ]
        torch._foreach_div_(shrink, self._radii)
        torch._foreach_clamp_min_(shrink, 1.0)
        torch._foreach_reciprocal_(shrink)
        torch._foreach_sub_(shrink, 1.0)
        torch._foreach_neg_(shrink)  # 1 - 1 / max(1, norm / radius): exactly 0 within it, where lerp changes nothing
        torch._foreach_lerp_(self._weights, self._anchors, shrink)
