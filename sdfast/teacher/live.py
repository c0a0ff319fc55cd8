"""The teacher beside the student: a frozen encoder that sees the same clean input at every step."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from sdfast.data.text_batch import TokenBatch
from sdfast.errors import UserError
from sdfast.models.text import Asking, TextEncoder, first_tokens
from sdfast.models.vit import ViTEncoder
from sdfast.teacher.features import Layer, Tokens, blocks_before, matched_features
from sdfast.teacher.targets import Targets


class LiveTeacher(nn.Module):
    """f_theta0 in evaluation mode, without gradient (StopGrad in equation 3): dropout acts in the student alone."""

    def __init__(self, encoder: ViTEncoder | TextEncoder, tokens: Tokens, layer: Layer = "last") -> None:
        super().__init__()
        self.encoder = copy.deepcopy(encoder).requires_grad_(False).eval()
        self.tokens, self.layer = tokens, layer
        self.static = isinstance(encoder, ViTEncoder)  # every batch of texts has other lengths: see `Teacher.static`
        self._features: Callable[..., Tensor] = matched_features if self.static else matched_text_features

    @torch.no_grad()
    def forward(self, inputs: Tensor | TokenBatch) -> Tensor:
        """Unmasked images, [B, C, H, W] normalised, or texts -> their features: [B, D] or [B, N, D], of texts [T, D].

        See `matched_features` and `matched_text_features`.
        """
        return self._features(self.encoder, inputs, self.tokens, self.layer)

    def announce(self, rows: Tensor, epoch: int) -> None:
        """Nothing to do."""

    def targets(self, inputs: Tensor | TokenBatch, rows: Tensor, epoch: int) -> Targets:
        """The teacher's features of the samples, computed now; rows and epoch do not matter."""
        return Targets(self(inputs))


def matched_text_features(encoder: TextEncoder, batch: TokenBatch, tokens: Tokens, layer: Layer = "last") -> Tensor:
    """The features of unmasked texts that teacher and student are compared by (fidelity 3.3).

    Args:
        encoder: of the one or the other.
        batch: the texts.
        tokens: see `asked_tokens`.
        layer: after so many blocks, or the last.

    Returns:
        [B, D] for `cls`, [T, D] for `all`, sequence after sequence.
    """
    return encoder(batch, asked_tokens(batch.lengths, tokens), blocks_before(layer))


def asked_tokens(lengths: Tensor, tokens: Tokens) -> Asking | None:
    """Those of texts that are matched: `cls`, the first (`<s>`, `[CLS]`), or `all` (equation 3 read literally), None.

    Raises:
        UserError: these are patches.
    """
    check_text_tokens(tokens)
    return first_tokens(lengths) if tokens == "cls" else None


def check_text_tokens(tokens: Tokens) -> None:
    """Check that texts have such tokens.

    Raises:
        UserError: these are patches.
    """
    if tokens == "patch":
        raise UserError("distill.tokens=patch is for images; for texts use cls (the first token) or all.")
