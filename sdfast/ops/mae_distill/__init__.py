"""Masked-pixel loss plus representation distance: reference, backends, public function and module."""

from __future__ import annotations

from sdfast.ops.mae_distill.arguments import MaeDistillOutput
from sdfast.ops.mae_distill.loss import MaeDistillLoss, mae_distill_loss

__all__ = ["MaeDistillLoss", "MaeDistillOutput", "mae_distill_loss"]
