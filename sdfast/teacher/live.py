"""The teacher beside the student: a frozen encoder that sees the same clean image at every step."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from sdfast.models.vit import ViTEncoder
from sdfast.teacher.features import Layer, Tokens, matched_features
from sdfast.teacher.targets import Targets


class LiveTeacher(nn.Module):
    """f_theta0 in evaluation mode, without gradient (StopGrad in equation 3)."""

    def __init__(self, encoder: ViTEncoder, tokens: Tokens, layer: Layer = "last") -> None:
        super().__init__()
        self.encoder = copy.deepcopy(encoder).requires_grad_(False).eval()
        self.tokens, self.layer = tokens, layer

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> Tensor:
        """[B, C, H, W] normalised, unmasked -> see `matched_features`."""
        return matched_features(self.encoder, pixels, self.tokens, self.layer)

    static = True  # see `Teacher.static`

    def announce(self, rows: Tensor, epoch: int) -> None:
        """Nothing to do."""

    def targets(self, pixels: Tensor, rows: Tensor, epoch: int) -> Targets:
        """See `Teacher.targets`; rows and epoch do not matter."""
        return Targets(self(pixels))
