"""The specification: eager PyTorch, one line of mathematics a line of code.

Every other backend is tested against this file run in float64.
Formula: masked auto-encoders (He et al. 2022, ``norm_pix_loss``) and self-distillation for
further pre-training (Lee et al. 2023).
"""

from __future__ import annotations

import torch
from torch import Tensor

from sdfast.ops.mae_distill.arguments import Arguments, MaeDistillOutput

NORM_PIX_EPS = 1e-6


def reference_mae_distill(a: Arguments) -> MaeDistillOutput:
    """Evaluate the loss with plain tensor operations; autograd gives the gradients.

    Args:
        a: checked arguments (``sdfast.ops.mae_distill.arguments.check_arguments``).

    Returns:
        MaeDistillOutput in float64 if any floating input is float64, else in float32.
    """
    dtype = a.compute_dtype
    mae = masked_pixel_loss(a) if a.pred is not None else torch.zeros((), dtype=dtype, device=a.device)
    distill = representation_loss(a) if a.student is not None else torch.zeros((), dtype=dtype, device=a.device)
    loss = a.mae_weight * mae + a.distill_weight * distill
    return MaeDistillOutput(loss, mae.detach(), distill.detach())


def masked_pixel_loss(a: Arguments) -> Tensor:
    """Mean over the masked patches of ``||pred - norm(x)||^2 / P``; 0 when no patch is masked."""
    assert a.pred is not None and a.images is not None
    difference = a.pred.to(a.compute_dtype) - normalised(target_patches(a), a.norm_pix)
    if a.mask is None:
        return difference.square().sum() / max(difference.numel(), 1)
    masked = a.mask != 0  # [B, L]
    per_patch = torch.where(masked.unsqueeze(-1), difference, 0.0).square().mean(dim=-1)  # [B, L]
    return per_patch.sum() / masked.sum().clamp(min=1)


def representation_loss(a: Arguments) -> Tensor:
    """``1/B sum_b ||s_b - t_b||^2``, divided by the size of ``s_b`` as well for the reduction ``mean``."""
    assert a.student is not None
    squares = (a.student.to(a.compute_dtype) - teacher_rows(a)).square().sum()
    return squares / max(a.student.numel() if a.distill_mean else a.student.shape[0], 1)


def target_patches(a: Arguments) -> Tensor:
    """[B, L, P], or [B, M, P] with `mask_ids`: the pixels that `pred` is compared with, before `normalised`."""
    patches = patchify(pixels_as_seen(a), a.patch_size)
    if a.mask_ids is None:
        return patches
    return patches.gather(1, a.mask_ids.long().unsqueeze(-1).expand(-1, -1, patches.shape[2]))


def normalised(patches: Tensor, norm_pix: bool) -> Tensor:
    """Each patch with its mean taken away and divided by its deviation; as they are without ``norm_pix``."""
    if not norm_pix or patches.numel() == 0:
        return patches
    centred = patches - patches.mean(dim=-1, keepdim=True)
    variance = centred.square().sum(dim=-1, keepdim=True) / (patches.shape[-1] - 1)  # torch.var takes ten times as long
    return centred / (variance + NORM_PIX_EPS).sqrt()


def teacher_rows(a: Arguments) -> Tensor:
    """[B, D] or [B, N, D]: the teacher of each sample, out of its bank and off its scale."""
    assert a.teacher is not None
    teacher, scale = a.teacher, a.teacher_scale
    if a.rows is not None:
        rows = a.rows.long()
        teacher, scale = teacher[rows], None if scale is None else scale[rows]
    teacher = teacher.to(a.compute_dtype)
    if scale is not None:
        teacher = teacher * scale.to(a.compute_dtype).unsqueeze(-1)
    return teacher


def pixels_as_seen(a: Arguments) -> Tensor:
    """The pixels as the model saw them, [B, C, H, W]; uint8 becomes ``(x / 255 - mean) / std``."""
    assert a.images is not None
    images = a.images.to(a.compute_dtype)
    if a.mean is None or a.std is None:
        return images
    mean = torch.tensor(a.mean, dtype=a.compute_dtype, device=a.device).view(-1, 1, 1)
    std = torch.tensor(a.std, dtype=a.compute_dtype, device=a.device).view(-1, 1, 1)
    return (images / 255 - mean) / std


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """[B, C, H, W] -> [B, L, P]: patches row by row; inside a patch row, column, then channel (fastest)."""
    batch, channels, height, width = images.shape
    rows, columns = height // patch_size, width // patch_size
    tiles = images.reshape(batch, channels, rows, patch_size, columns, patch_size)
    return tiles.permute(0, 2, 4, 3, 5, 1).reshape(batch, rows * columns, patch_size * patch_size * channels)
