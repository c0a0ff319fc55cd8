"""The arguments of one call, and what comes of it. Every mistake is named here, before any kernel is launched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
INDEX_DTYPES = (torch.int64, torch.int32)
MASK_DTYPES = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, *FLOAT_DTYPES)


class MaeDistillOutput(NamedTuple):
    """The loss and its two parts, 0-D tensors on the device of the inputs.

    Attributes:
        loss: ``mae_weight * mae + distill_weight * distill``; the only one that carries gradient.
        mae: the unweighted pixel part, detached; 0 when ``pred`` is absent.
        distill: the unweighted representation part, detached; 0 when ``student`` is absent.
    """

    loss: Tensor
    mae: Tensor
    distill: Tensor


class Arguments(NamedTuple):
    """One call. Checked, shapes agree, all tensors lie on ``device``, and an absent part is None throughout.

    All fields but the last two are the operands of the fused operators, in their order.
    """

    pred: Tensor | None = None  # [B, L, P], or [B, M, P] with mask_ids
    images: Tensor | None = None  # [B, C, H, W]
    mask: Tensor | None = None  # [B, L]; bool when checked
    mask_ids: Tensor | None = None  # [B, M]; int64 when checked
    student: Tensor | None = None  # [B, D] or [B, N, D]
    teacher: Tensor | None = None  # as student, or [n, D] / [n, N, D] with rows
    rows: Tensor | None = None  # [B]; int64 when checked
    teacher_scale: Tensor | None = None  # teacher's shape without its last dimension
    mean: float | Sequence[float] | None = None  # for uint8 images only; a tuple of C numbers when checked
    std: float | Sequence[float] | None = None
    patch_size: int = 16
    norm_pix: bool = True
    mae_weight: float = 1.0
    distill_weight: float = 1.0
    distill_mean: bool = False
    want_grad_pred: bool = False
    want_grad_student: bool = False
    compute_dtype: torch.dtype = torch.float32
    device: torch.device = torch.device("cpu")


def check_arguments(a: Arguments, distill_reduction: str = "sum") -> Arguments:
    """Check one call of `mae_distill_loss`, and fill in what follows from it.

    Raises:
        TypeError: an argument of the wrong kind.
        ValueError: a shape, device or value that does not fit; the message names the argument.
    """
    if a.pred is None and a.student is None:
        raise ValueError("give pred (pixel part), student (representation part) or both: neither was given")
    if distill_reduction not in ("sum", "mean"):
        raise ValueError(f"distill_reduction should be 'sum' or 'mean', not {distill_reduction!r}")
    means = stds = None
    if a.pred is not None:
        _check_pixel_part(a, a.pred)
        means, stds = _check_mean_std(a)
    else:
        _check_absent(a, "pred", "images", "mask", "mask_ids", "mean", "std")
    if a.student is not None:
        _check_representation_part(a, a.student)
    else:
        _check_absent(a, "student", "teacher", "rows", "teacher_scale")
    if a.pred is not None and a.student is not None and a.pred.shape[0] != a.student.shape[0]:
        raise ValueError(f"student should have pred's batch size {a.pred.shape[0]}, not {a.student.shape[0]}")
    owner = "pred" if a.pred is not None else "student"
    device = getattr(a, owner).device
    for name, value in zip(a._fields, a, strict=True):
        if isinstance(value, Tensor) and value.device != device:
            raise ValueError(f"{name} should be on {owner}'s device {device}, not on {value.device}")
    grad = torch.is_grad_enabled()
    return a._replace(
        mask=a.mask if a.mask is None or a.mask.dtype == torch.bool else a.mask != 0,
        mask_ids=None if a.mask_ids is None else a.mask_ids.long(),
        rows=None if a.rows is None else a.rows.long(),
        mean=means,
        std=stds,
        norm_pix=bool(a.norm_pix),
        mae_weight=_number("mae_weight", a.mae_weight),
        distill_weight=_number("distill_weight", a.distill_weight),
        distill_mean=distill_reduction == "mean",
        want_grad_pred=grad and a.pred is not None and a.pred.requires_grad,
        want_grad_student=grad and a.student is not None and a.student.requires_grad,
        compute_dtype=widest(a.pred, a.images, a.student, a.teacher),
        device=device,
    )


def widest(*tensors: Tensor | None) -> torch.dtype:
    """What is computed in: float64 if any of these is float64, else float32."""
    wide = any(each is not None and each.dtype == torch.float64 for each in tensors)
    return torch.float64 if wide else torch.float32


def _check_pixel_part(a: Arguments, pred: Tensor) -> None:
    images, mask, mask_ids, patch_size = a.images, a.mask, a.mask_ids, a.patch_size
    _check_tensor("pred", pred, FLOAT_DTYPES, "[B, L, P] (or [B, M, P] with mask_ids)", 3)
    if images is None:
        raise ValueError("images should be given with pred")
    _check_tensor("images", images, (*FLOAT_DTYPES, torch.uint8), "[B, C, H, W]", 4)
    if images.requires_grad:
        raise ValueError("images should not require grad: the loss has no gradient with respect to the pixels")
    if not isinstance(patch_size, int) or isinstance(patch_size, bool):
        raise TypeError(f"patch_size should be an int, not {type(patch_size).__name__}")
    batch, channels, height, width = images.shape
    if patch_size < 1 or height % patch_size or width % patch_size:
        raise ValueError(f"patch_size should divide the images' height {height} and width {width}, not {patch_size}")
    patches, values = (height // patch_size) * (width // patch_size), patch_size * patch_size * channels
    if a.norm_pix and values < 2:
        raise ValueError("norm_pix should be False for patches of a single value: they have no variance")
    if (mask is None) == (mask_ids is None):
        raise ValueError("give either mask (pred for all patches) or mask_ids (pred for the masked ones), one of them")
    if mask is not None:
        _check_tensor("mask", mask, MASK_DTYPES, "[B, L]", 2)
        _check_shape("pred", pred, (batch, patches, values))
        _check_shape("mask", mask, (batch, patches))
    elif mask_ids is not None:
        _check_tensor("mask_ids", mask_ids, INDEX_DTYPES, "[B, M]", 2)
        _check_shape("pred", pred, (batch, mask_ids.shape[1], values))
        _check_shape("mask_ids", mask_ids, (batch, mask_ids.shape[1]))
        _check_range("mask_ids", mask_ids, patches)


def _check_representation_part(a: Arguments, student: Tensor) -> None:
    teacher, rows, teacher_scale = a.teacher, a.rows, a.teacher_scale
    _check_tensor("student", student, FLOAT_DTYPES, "[B, D] or [B, N, D]", 2, 3)
    if teacher is None:
        raise ValueError("teacher should be given with student")
    _check_tensor("teacher", teacher, (*FLOAT_DTYPES, torch.int8), "student's shape, or a bank with rows", 2, 3)
    if teacher.requires_grad:
        raise ValueError("teacher should not require grad: detach it, or compute it under torch.no_grad()")
    if rows is None:
        _check_shape("teacher", teacher, tuple(student.shape), "; give rows= to read it as a bank")
    else:
        _check_tensor("rows", rows, INDEX_DTYPES, "[B]", 1)
        _check_shape("rows", rows, (student.shape[0],))
        _check_shape("teacher", teacher, (teacher.shape[0], *student.shape[1:]))
        _check_range("rows", rows, teacher.shape[0])
    if teacher.dtype == torch.int8 and teacher_scale is None:
        raise ValueError("teacher_scale should be given with an int8 teacher: one number per token")
    if teacher_scale is not None:
        if teacher.dtype != torch.int8:
            raise ValueError(f"teacher_scale should be given with an int8 teacher only, not with {teacher.dtype}")
        _check_tensor("teacher_scale", teacher_scale, FLOAT_DTYPES, "teacher's shape without D", 1, 2)
        _check_shape("teacher_scale", teacher_scale, tuple(teacher.shape[:-1]))
        if teacher_scale.requires_grad:
            raise ValueError("teacher_scale should not require grad: detach it")


def _check_mean_std(a: Arguments) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    images, mean, std = a.images, a.mean, a.std
    assert images is not None
    if images.dtype != torch.uint8:
        if mean is not None or std is not None:
            raise ValueError("mean and std should be given with uint8 images only: float pixels are used as they are")
        return None, None
    if mean is None or std is None:
        raise ValueError("mean and std should be given with uint8 images: pixels become (x / 255 - mean) / std")
    means, stds = _per_channel("mean", mean, images.shape[1]), _per_channel("std", std, images.shape[1])
    if min(stds, default=1.0) <= 0.0:
        raise ValueError(f"std should be positive, not {std!r}")
    return means, stds


def _per_channel(name: str, value: float | Sequence[float], channels: int) -> tuple[float, ...]:
    if isinstance(value, Tensor):
        raise TypeError(f"{name} should be a number or a sequence of numbers, not a tensor: call .tolist() once")
    if isinstance(value, (int, float)):
        return (float(value),) * channels
    try:
        numbers = tuple([float(v) for v in value])
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} should be a number or a sequence of numbers, not {value!r}") from error
    if len(numbers) == 1:
        return numbers * channels
    if len(numbers) != channels:
        raise ValueError(f"{name} should have one number for each of the {channels} channels, not {len(numbers)}")
    return numbers


def _check_absent(a: Arguments, part: str, *names: str) -> None:
    for name in names:
        if getattr(a, name) is not None:
            raise ValueError(f"{name} was given without {part}: give {part} as well, or leave {name} out")


def _check_tensor(name: str, tensor: Tensor, dtypes: tuple[torch.dtype, ...], shape: str, *dims: int) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} should be a tensor {shape}, not {type(tensor).__name__}")
    if tensor.dim() not in dims:
        raise ValueError(f"{name} should have shape {shape}, not {list(tensor.shape)}")
    if tensor.dtype not in dtypes:
        names = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
        raise TypeError(f"{name} should have one of the dtypes {names}, not {str(tensor.dtype).removeprefix('torch.')}")


def _check_shape(name: str, tensor: Tensor, shape: tuple[int, ...], hint: str = "") -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} should have shape {list(shape)}, not {list(tensor.shape)}{hint}")


def _check_range(name: str, ids: Tensor, limit: int) -> None:
    """Raise when an index is outside [0, limit). Only on the CPU, where looking costs no synchronisation."""
    if torch.compiler.is_compiling() or ids.device.type != "cpu" or ids.numel() == 0 or type(ids) is not Tensor:
        return
    low, high = (int(bound) for bound in ids.aminmax())
    if low < 0 or high >= limit:
        raise ValueError(f"{name} should lie in [0, {limit}), not in [{low}, {high}]")


def _number(name: str, value: float) -> float:
    if isinstance(value, Tensor):
        raise TypeError(f"{name} should be a number, not a tensor")
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} should be a number, not {type(value).__name__}") from error
