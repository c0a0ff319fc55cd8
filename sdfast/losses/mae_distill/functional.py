"""The public function: check, choose a backend, evaluate."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from sdfast.losses.mae_distill.arguments import check_arguments
from sdfast.losses.mae_distill.dispatch import evaluate
from sdfast.losses.mae_distill.output import MaeDistillOutput


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
    arguments = check_arguments(
        pred,
        images,
        mask,
        student,
        teacher,
        mask_ids,
        rows,
        teacher_scale,
        mean,
        std,
        patch_size,
        norm_pix,
        mae_weight,
        distill_weight,
        distill_reduction,
    )
    return evaluate(backend, arguments)
