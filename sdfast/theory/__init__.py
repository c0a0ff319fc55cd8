"""The linear model of the paper's section 4, solved exactly in float64: what its theorems say, and where they fail."""

from sdfast.theory.bounds import paper_bound, paper_drops, repaired_bound, repaired_drops
from sdfast.theory.linear import LinearModel

__all__ = ["LinearModel", "paper_bound", "paper_drops", "repaired_bound", "repaired_drops"]
