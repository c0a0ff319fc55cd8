"""The text teacher beside the student, and the representation that both are compared by."""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import Tensor, nn

from sdfast.data.text_batch import TokenBatch
from sdfast.models.text import TextEncoder, first_tokens
from sdfast.teacher.features import Layer, blocks_before
from sdfast.teacher.targets import Targets

TextTokens = Literal["cls", "all"]


def matched_text_features(encoder: TextEncoder, batch: TokenBatch, tokens: TextTokens, layer: Layer = "last") -> Tensor:
    """The features of unmasked texts that teacher and student are compared by (fidelity 3.3).

    Args:
        encoder: of the one or the other.
        batch: the texts.
        tokens: `cls`, the first token (`<s>`, `[CLS]`); `all`, every token (equation 3 read literally).
        layer: after so many blocks, or the last.

    Returns:
        [B, D] for `cls`, [T, D] for `all`, sequence after sequence.
    """
    asking = first_tokens(batch.lengths) if tokens == "cls" else None
    return encoder(batch, asking, blocks_before(layer))


class LiveTextTeacher(nn.Module):
    """f_theta0 in evaluation mode, without gradient (StopGrad in equation 3): dropout acts in the student alone."""

    def __init__(self, encoder: TextEncoder, tokens: TextTokens, layer: Layer = "last") -> None:
        super().__init__()
        self.encoder = copy.deepcopy(encoder).requires_grad_(False).eval()
        self.tokens, self.layer = tokens, layer

    @torch.no_grad()
    def forward(self, batch: TokenBatch) -> Tensor:
        """See `matched_text_features`."""
        return matched_text_features(self.encoder, batch, self.tokens, self.layer)

    static = False  # see `Teacher.static`: every batch has other lengths

    def announce(self, rows: Tensor, epoch: int) -> None:
        """Nothing to do."""

    def targets(self, batch: TokenBatch, rows: Tensor, epoch: int) -> Targets:
        """See `Teacher.targets`; rows and epoch do not matter."""
        return Targets(self(batch))
