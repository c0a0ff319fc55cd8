"""The teacher beside the student: a frozen encoder that sees the same clean input at every step."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from sdfast.models.base import Encoder, Layer, Tokens
from sdfast.teacher.targets import Targets


class LiveTeacher(nn.Module):
    """f_theta0 in evaluation mode, without gradient (StopGrad in equation 3): dropout acts in the student alone."""

    def __init__(self, encoder: Encoder, tokens: Tokens, layer: Layer = "last") -> None:
        super().__init__()
        self.encoder = copy.deepcopy(encoder).requires_grad_(False).eval()
        self.tokens, self.layer, self.static = tokens, layer, encoder.static

    @torch.no_grad()
    def forward(self, inputs: Any) -> Tensor:
        """Unmasked images [B, C, H, W], normalised, or texts -> features: [B, D] or [B, N, D], of texts [T, D]."""
        return self.encoder.features(inputs, self.tokens, self.layer)

    def announce(self, rows: Tensor, epoch: int) -> None:
        """Nothing to do."""

    def targets(self, inputs: Any, rows: Tensor, epoch: int) -> Targets:
        """The teacher's features of the samples, computed now; rows and epoch do not matter."""
        return Targets(self(inputs))
