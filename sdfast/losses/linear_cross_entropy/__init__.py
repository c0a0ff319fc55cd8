"""Cross-entropy of a linear layer's outputs, which are never there all at once."""

from __future__ import annotations

from sdfast.losses.linear_cross_entropy.functional import linear_cross_entropy

__all__ = ["linear_cross_entropy"]
