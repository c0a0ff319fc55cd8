"""The loss as an nn.Module: the settings once, the tensors at every call."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from sdfast.losses.mae_distill.functional import mae_distill_loss
from sdfast.losses.mae_distill.output import MaeDistillOutput


class MaeDistillLoss(nn.Module):
    """``mae_distill_loss`` with its settings kept; it has no parameters and no buffers.

    Args:
        patch_size, norm_pix, mae_weight, distill_weight, distill_reduction, mean, std, backend: as in
            `sdfast.losses.mae_distill_loss`.
    """

    def __init__(
        self,
        patch_size: int = 16,
        norm_pix: bool = True,
        mae_weight: float = 1.0,
        distill_weight: float = 1.0,
        distill_reduction: str = "sum",
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.norm_pix = norm_pix
        self.mae_weight = mae_weight
        self.distill_weight = distill_weight
        self.distill_reduction = distill_reduction
        self.mean = mean
        self.std = std
        self.backend = backend

    def forward(
        self,
        pred: Tensor | None = None,
        images: Tensor | None = None,
        mask: Tensor | None = None,
        student: Tensor | None = None,
        teacher: Tensor | None = None,
        *,
        mask_ids: Tensor | None = None,
        rows: Tensor | None = None,
        teacher_scale: Tensor | None = None,
    ) -> MaeDistillOutput:
        """Evaluate the loss; arguments and errors as in `sdfast.losses.mae_distill_loss`."""
        return mae_distill_loss(
            pred,
            images,
            mask,
            student,
            teacher,
            mask_ids=mask_ids,
            rows=rows,
            teacher_scale=teacher_scale,
            mean=self.mean,
            std=self.std,
            patch_size=self.patch_size,
            norm_pix=self.norm_pix,
            mae_weight=self.mae_weight,
            distill_weight=self.distill_weight,
            distill_reduction=self.distill_reduction,
            backend=self.backend,
        )

    def extra_repr(self) -> str:
        """The settings, for ``print(module)``."""
        return (
            f"patch_size={self.patch_size}, norm_pix={self.norm_pix}, mae_weight={self.mae_weight}, "
            f"distill_weight={self.distill_weight}, distill_reduction={self.distill_reduction!r}, "
            f"backend={self.backend!r}"
        )
