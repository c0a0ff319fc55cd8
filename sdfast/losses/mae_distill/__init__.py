"""Masked-pixel loss plus representation distance: reference, backends, dispatcher, module."""

from __future__ import annotations

from sdfast.losses.mae_distill.functional import mae_distill_loss
from sdfast.losses.mae_distill.module import MaeDistillLoss
from sdfast.losses.mae_distill.output import MaeDistillOutput

__all__ = ["MaeDistillLoss", "MaeDistillOutput", "mae_distill_loss"]
