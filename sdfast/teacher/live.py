"""The teacher beside the student: a frozen encoder that sees the same clean image at every step."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from sdfast.models.vit import ViTEncoder
from sdfast.teacher.features import Tokens, select_tokens
from sdfast.teacher.targets import Targets


class LiveTeacher(nn.Module):
    """f_theta0 in evaluation mode, without gradient (StopGrad in equation 3)."""

    def __init__(self, encoder: ViTEncoder, tokens: Tokens) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(encoder).requires_grad_(False).eval()
        self.tokens = tokens

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        """[B, C, H, W] normalised, unmasked -> the matched tokens (see `select_tokens`)."""
        return select_tokens(self.encoder(pixels), self.tokens)

    def announce(self, rows: Tensor, epoch: int) -> None:
        """Nothing to do."""

    def targets(self, pixels: Tensor, rows: Tensor, epoch: int) -> Targets:
        """See `Teacher.targets`; rows and epoch do not matter."""
        return Targets(self(pixels))
