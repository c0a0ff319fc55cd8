"""Losses for other people's training loops. This package imports torch, `sdfast.ops` and nothing else of sdfast."""

from __future__ import annotations

from sdfast.losses.mlm_distill import MlmDistillOutput, mlm_distill_loss
from sdfast.ops.linear_cross_entropy import linear_cross_entropy
from sdfast.ops.linear_kl import linear_kl
from sdfast.ops.mae_distill import MaeDistillLoss, MaeDistillOutput, mae_distill_loss

__all__ = [
    "MaeDistillLoss",
    "MaeDistillOutput",
    "MlmDistillOutput",
    "linear_cross_entropy",
    "linear_kl",
    "mae_distill_loss",
    "mlm_distill_loss",
]
