"""What the models of all modalities have in common: an encoder of blocks, and what stands on it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from sdfast.errors import UserError

Tokens = Literal["cls", "patch", "all"]
Layer = int | Literal["last"]  # the output of so many blocks, as it is; or of all of them after the final LayerNorm


class Encoder(nn.Module, ABC):
    """Embeddings and blocks.

    Attributes:
        static: whether every batch of as many rows has the same shapes.
        blocks: the transformer.
    """

    static: ClassVar[bool]
    blocks: nn.ModuleList

    @abstractmethod
    def features(self, inputs: Any, tokens: Tokens, layer: Layer = "last") -> Tensor:
        """What teacher and student are compared by, of unmasked inputs.

        Args:
            inputs: what the encoder takes: images or texts.
            tokens: `cls` (the released code), `patch`, or `all` (equation 3 read literally).
            layer: after which block.
        """


class MaskedModel(nn.Module):
    """An encoder, and a head that reconstructs what is masked.

    Attributes:
        shape: everything that decides the architecture.
        encoder: of the visible part.
    """

    shape: Any
    encoder: Encoder


class Classifier(nn.Module):
    """An encoder and a linear layer on its first token.

    Attributes:
        shape: everything that decides the architecture.
        encoder: of the inputs.
        classifier: the last layer: [D] -> [classes].
        standard: what features go through on their way to the head: nothing is done to them, or they are standardised
            (see `sdfast.models.standardised`).
    """

    shape: Any
    encoder: Encoder
    classifier: nn.Linear
    standard: nn.Module

    def __init__(self) -> None:
        super().__init__()
        self.standard = nn.Identity()


def blocks_before(layer: Layer) -> int | None:
    """How many blocks a layer lies behind: None for all, and the last LayerNorm."""
    return None if layer == "last" else layer


def check_layer(layer: Layer, depth: int) -> None:
    """Compare `distill.layer` with the number of blocks.

    Raises:
        UserError: there is no such inner layer.
    """
    if layer != "last" and not 1 <= layer < depth:
        inner = f"use 1 to {depth - 1}, or last" if depth > 1 else "use last"
        blocks = f"{depth} block{'s' if depth > 1 else ''}"
        raise UserError(
            f"distill.layer={layer} is no inner layer of this model, which has {blocks}; {inner} (after all blocks"
            " and the final LayerNorm)."
        )
