"""Features of inputs, given by a module as a classifier gives classes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor

from sdfast.models.base import Classifier
from sdfast.models.neighbours import Features

FeatureTokens = Literal["cls", "mean", "patch"]


class Embedder(Classifier):
    """An encoder, and which of its tokens are given.

    Attributes:
        classifier: gives the features as they are; its `out_features` is their number.
    """

    classifier: Any

    def __init__(self, start: Any, pool: Callable[[Any, Any], Tensor], width: int) -> None:
        """Take an encoder.

        Args:
            start: whose encoder it has, not a copy.
            pool: encoder, inputs -> [B, width].
            width: numbers of an input.
        """
        super().__init__()
        self.shape, self.encoder, self.classifier = start.shape, start.encoder, Features(width)
        self._pool = pool

    def forward(self, inputs: Any) -> Tensor:
        """What the encoder takes -> [B, width]."""
        return self.classifier(self._pool(self.encoder, inputs))
