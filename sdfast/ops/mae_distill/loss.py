"""The public function and module: check a call, choose a backend, evaluate."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sdfast.ops.mae_distill.arguments import Arguments, MaeDistillOutput, check_arguments
from sdfast.ops.mae_distill.fused import native_mae_distill, why_not_native
from sdfast.ops.mae_distill.in_place import in_place_mae_distill
from sdfast.ops.mae_distill.reference import reference_mae_distill
from sdfast.ops.mae_distill.triton_backend import triton_mae_distill, why_not_triton
from sdfast.ops.registry import Backend, Op, add, choose


def mae_distill_loss(
    pred: Tensor | None = None,
    images: Tensor | None = None,
    mask: Tensor | None = None,
    student: Tensor | None = None,
    teacher: Tensor | None = None,
    *,
    mask_ids: Tensor | None = None,
    rows: Tensor | None = None,
    teacher_scale: Tensor | None = None,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    patch_size: int = 16,
    norm_pix: bool = True,
    mae_weight: float = 1.0,
    distill_weight: float = 1.0,
    distill_reduction: str = "sum",
    backend: str = "auto",
) -> MaeDistillOutput:
    """Masked-pixel loss plus squared distance to a teacher's representation.

    ``loss = mae_weight * mae + distill_weight * distill`` with

    * ``mae``: mean over the masked patches of ``||pred - norm(x)||^2 / P``, where ``norm`` takes the patch's
      mean away and divides by ``sqrt(var + 1e-6)`` (unbiased variance) when ``norm_pix``, and is the identity
      otherwise. 0 with zero gradient when nothing is masked.
    * ``distill``: ``1/B sum_b ||s_b - t_b||^2``, summed over the features (and over the tokens of [B, N, D]);
      0 when the batch is empty.

    Give ``pred`` (with ``images`` and ``mask`` or ``mask_ids``), ``student`` (with ``teacher``), or both. The
    gradient goes to ``pred`` and ``student`` only. Arithmetic is float32 (float64 when a floating input is
    float64) whatever the dtypes of the inputs and the autocast state.

    Args:
        pred: decoder output, float [B, L, P] for all patches with ``mask``, or [B, M, P] for the masked ones
            with ``mask_ids``; P = patch_size * patch_size * C, order row, column, channel (channel fastest).
        images: [B, C, H, W], any strides (an NHWC pack is read as ``pixels.permute(0, 3, 1, 2)``, no copy):
            float pixels as the model saw them, or uint8 with ``mean`` and ``std``.
        mask: [B, L], bool or numbers; a patch counts when its entry is not 0.
        student: float [B, D] or [B, N, D].
        teacher: no gradient; student's shape, or a bank [n, D] / [n, N, D] with ``rows``; float or int8.
        mask_ids: int [B, M], the patch of each prediction, in [0, L).
        rows: int [B], the bank's row of each sample, in [0, n).
        teacher_scale: float, teacher's shape without D; an int8 teacher stands for ``teacher * scale``.
        mean: per channel (or one number), for uint8 images: pixels are ``(x / 255 - mean) / std``.
        std: as ``mean``.
        patch_size: side of a patch in pixels; divides H and W.
        norm_pix: normalise each target patch by its own mean and variance.
        mae_weight: factor of the pixel part.
        distill_weight: factor of the representation part.
        distill_reduction: ``"sum"`` (the paper: sum over features, mean over the batch) or ``"mean"`` (mean
            over every element).
        backend: ``"auto"``, ``"reference"``, ``"native"`` (compiled) or ``"triton"``.

    Returns:
        MaeDistillOutput ``(loss, mae, distill)``: 0-D float32 (or float64) tensors on the inputs' device.

    Raises:
        TypeError: an argument of the wrong kind or dtype.
        ValueError: a shape, device or value that does not fit. Index ranges are looked at on the CPU only, as
            looking would make a GPU wait; on a GPU the fast backends answer an index out of range with a NaN
            loss and read nothing outside the tensors.
        RuntimeError: an explicit backend that is not available.

    Source: He et al. 2022 (masked auto-encoders); Lee et al. 2023 (arXiv 2210.02871) and its released code.
    """
    arguments = Arguments(
        pred=pred,
        images=images,
        mask=mask,
        mask_ids=mask_ids,
        student=student,
        teacher=teacher,
        rows=rows,
        teacher_scale=teacher_scale,
        mean=mean,
        std=std,
        patch_size=patch_size,
        norm_pix=norm_pix,
        mae_weight=mae_weight,
        distill_weight=distill_weight,
    )
    return evaluate(backend, check_arguments(arguments, distill_reduction))


def evaluate(backend: str, arguments: Arguments) -> MaeDistillOutput:
    """Evaluate checked arguments with the named backend.

    Where "auto" finds none but the reference, its numbers are made with fewer passes over memory.

    Raises:
        ValueError: an unknown name.
        RuntimeError: an explicit backend that is not available.
    """
    chosen = choose("mae_distill", backend, arguments.device.type)
    if chosen == "reference" and backend == "auto" and not torch.compiler.is_compiling():
        return in_place_mae_distill(arguments)
    return ROW.backends[chosen].function(arguments)


ROW = add(
    Op(
        "mae_distill",
        {
            "reference": Backend(reference_mae_distill),
            "native": Backend(native_mae_distill, why_not_native),
            "triton": Backend(triton_mae_distill, why_not_triton),
        },
        preferences={"cpu": ("native",), "cuda": ("triton", "native")},
        called="mae_distill_loss",
    )
)


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
