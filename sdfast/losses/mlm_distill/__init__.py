"""Masked-token loss plus representation distance, the text counterpart of `sdfast.losses.mae_distill`."""

from __future__ import annotations

from sdfast.losses.mlm_distill.functional import MlmDistillOutput, mlm_distill_loss

__all__ = ["MlmDistillOutput", "mlm_distill_loss"]
