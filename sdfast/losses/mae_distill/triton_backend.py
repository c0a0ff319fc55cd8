"""The Triton backend: two launches, no host synchronisation, visible to the compiler as a ``triton_op``."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
from torch import Tensor

from sdfast.losses.mae_distill.arguments import Arguments
from sdfast.losses.mae_distill.fused import call_operator, empty_outputs, register_autograd
from sdfast.losses.mae_distill.output import MaeDistillOutput

OPERATOR = "sdfast::mae_distill_triton"
PROGRAMS_A_MULTIPROCESSOR = 8
TILE_VALUES = 1024  # values a program holds at once, unless a single patch has more
COUNT_BLOCK = 4096


@functools.cache
def why_not(device_type: str) -> str | None:
    """None when the kernels can run on such a device, else the reason. Imports triton on the first call.

    A torch that refuses the operator is a reason too, as torch changes what it accepts from release to release and
    other backends give the same numbers: a run goes on with one of them, and the choice says why (the tests ask for
    the operator itself, so that a fault of ours does not pass for such a refusal).
    """
    try:
        from sdfast.losses.mae_distill.triton_kernels import mae_distill_kernel
    except ImportError as error:
        return f"triton cannot be imported ({error})"
    if device_type == "cpu" and not _is_interpreted(mae_distill_kernel):
        return "on CPU tensors Triton runs in its interpreter only: set TRITON_INTERPRET=1 before importing triton"
    if device_type not in ("cpu", "cuda"):
        return f"it is not written for {device_type}"
    try:
        _register()
    except Exception as error:
        text = " ".join(str(error).split())
        return f"torch {torch.__version__} does not take its operator ({type(error).__name__}: {text})"
    return None


def triton_mae_distill(a: Arguments) -> MaeDistillOutput:
    """Evaluate in one pass over memory; gradients are made on the way.

    Eager calls launch the kernels themselves; compiled ones go through the operator, which the compiler opens.
    """
    if torch.compiler.is_compiling():
        return call_operator(torch.ops.sdfast.mae_distill_triton.default, a)
    return call_operator(_launch_eagerly, a)


def _launch_eagerly(*operands: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    from sdfast.losses.mae_distill.triton_kernels import count_kernel, mae_distill_kernel

    return launch(count_kernel, mae_distill_kernel, *operands)


@functools.cache
def _register() -> None:
    """Define the operator: its body is traced by the compiler, so that both kernels appear in the graph.

    torch derives the schema from the signature, which is that of the operator's outputs; a `schema=` of our own is
    ignored by torch 2.11.
    """
    from torch.library import triton_op, wrap_triton

    from sdfast.losses.mae_distill.triton_kernels import count_kernel, mae_distill_kernel

    def traceable(kernel: Any) -> Any:
        return kernel if _is_interpreted(kernel) else wrap_triton(kernel)  # torch 2.11 wraps no interpreted one

    def mae_distill_triton(*operands: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        return launch(traceable(count_kernel), traceable(mae_distill_kernel), *operands)

    mae_distill_triton.__dict__["__signature__"] = inspect.signature(empty_outputs, eval_str=True)
    triton_op(OPERATOR, mae_distill_triton, mutates_args=())
    register_autograd(OPERATOR)


def _is_interpreted(kernel: Any) -> bool:
    from triton.runtime.interpreter import InterpretedFunction

    return isinstance(kernel, InterpretedFunction)


def launch(
    count_kernel: Any,
    kernel: Any,
    pred: Tensor | None,
    images: Tensor | None,
    mask: Tensor | None,
    mask_ids: Tensor | None,
    student: Tensor | None,
    teacher: Tensor | None,
    rows: Tensor | None,
    teacher_scale: Tensor | None,
    mean: list[float],
    std: list[float],
    patch_size: int,
    norm_pix: bool,
    mae_weight: float,
    distill_weight: float,
    distill_mean: bool,
    want_grad_pred: bool,
    want_grad_student: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Launch the two kernels; operands and results as ``sdfast::mae_distill``."""
    outputs = empty_outputs(
        pred, images, mask, mask_ids, student, teacher, rows, teacher_scale, mean, std, patch_size, norm_pix,
        mae_weight, distill_weight, distill_mean, want_grad_pred, want_grad_student,
    )  # fmt: skip
    loss, mae, distill, grad_pred, grad_student = outputs
    pixels = _pixel_operands(pred, images, mask, mask_ids, grad_pred, mean, std, patch_size)
    tokens = _token_operands(student, teacher, rows, teacher_scale, grad_student)
    pixel_block = _power_of_two(pixels["PATCH"] ** 2 * pixels["CHANNELS"])
    token_block = min(_power_of_two(tokens["features"]), 2 * TILE_VALUES)
    pixel_tile, token_tile = max(1, TILE_VALUES // pixel_block), max(1, TILE_VALUES // token_block)
    tiles = max(-(-pixels["pixel_rows_total"] // pixel_tile), -(-tokens["token_rows_total"] // token_tile), 1)
    most_programs = PROGRAMS_A_MULTIPROCESSOR * _multiprocessors(loss.device)
    programs = min(tiles, most_programs)
    counters = loss.new_empty((2,), dtype=torch.int32)
    total = pixels["pixel_rows_total"]
    count_kernel[(1,)](pixels["mask"], counters, total, HAS_MASK=mask is not None, BLOCK=COUNT_BLOCK, num_warps=8)
    kernel[(programs,)](
        **pixels,
        **tokens,
        counters=counters,
        partial_sums=loss.new_empty((2 * programs,)),
        loss=loss,
        mae=mae,
        distill=distill,
        distill_divisor=max(1, student.numel() if distill_mean else student.shape[0]) if student is not None else 1,
        mae_weight=mae_weight,
        distill_weight=distill_weight,
        NORM_PIX=norm_pix,
        WANT_GRAD_PRED=want_grad_pred,
        WANT_GRAD_STUDENT=want_grad_student,
        WIDE=loss.dtype == torch.float64,
        PIXEL_ROWS=pixel_tile,
        PIXEL_BLOCK=pixel_block,
        TOKEN_ROWS=token_tile,
        TOKEN_BLOCK=token_block,
        PROGRAMS_BLOCK=_power_of_two(most_programs),
        num_warps=4 if max(pixel_block, token_block) <= 2048 else 8 if pixel_block <= 8192 else 16,
    )
    return outputs


def _pixel_operands(
    pred: Tensor | None,
    images: Tensor | None,
    mask: Tensor | None,
    mask_ids: Tensor | None,
    grad_pred: Tensor,
    mean: list[float],
    std: list[float],
    patch_size: int,
) -> dict[str, Any]:
    operands: dict[str, Any] = dict.fromkeys(("pred", "images", "mask", "mask_ids", "grad_pred", "GAIN", "OFFSET"))
    integers: tuple[str, ...] = (
        "pixel_rows_total",
        "rows_per_sample",
        "patches",
        "patch_columns",
        "pred_stride_sample",
    )
    integers += ("pred_stride_row", "image_stride_sample", "image_stride_channel", "image_stride_row")
    operands |= dict.fromkeys((*integers, "image_stride_column"), 0)
    operands |= {"PATCH": 1, "CHANNELS": 1}
    if pred is None or images is None:
        return operands
    pred = with_adjacent_values(pred)
    columns = images.shape[3] // patch_size
    operands |= {
        "pred": pred,
        "images": images,
        "mask": None if mask is None else mask.contiguous(),
        "mask_ids": None if mask_ids is None else mask_ids.contiguous(),
        "grad_pred": grad_pred,
        "pixel_rows_total": pred.shape[0] * pred.shape[1],
        "rows_per_sample": pred.shape[1],
        "patches": (images.shape[2] // patch_size) * columns,
        "patch_columns": columns,
        "pred_stride_sample": pred.stride(0),
        "pred_stride_row": pred.stride(1),
        "image_stride_sample": images.stride(0),
        "image_stride_channel": images.stride(1),
        "image_stride_row": images.stride(2),
        "image_stride_column": images.stride(3),
        "PATCH": patch_size,
        "CHANNELS": int(images.shape[1]),
    }
    if mean:
        operands["GAIN"] = tuple(1.0 / (255.0 * s) for s in std)
        operands["OFFSET"] = tuple(-m / s for m, s in zip(mean, std, strict=True))
    return operands


def _token_operands(
    student: Tensor | None,
    teacher: Tensor | None,
    rows: Tensor | None,
    teacher_scale: Tensor | None,
    grad_student: Tensor,
) -> dict[str, Any]:
    operands: dict[str, Any] = dict.fromkeys(("student", "teacher", "bank_rows", "teacher_scale", "grad_student"))
    integers: tuple[str, ...] = ("token_rows_total", "bank_size", "student_stride_sample", "student_stride_token")
    integers += ("teacher_stride_sample", "teacher_stride_token", "scale_stride_sample", "scale_stride_token")
    operands |= dict.fromkeys(integers, 0) | {"tokens": 1, "features": 1}
    if student is None or teacher is None:
        return operands
    student, teacher = with_adjacent_values(student), with_adjacent_values(teacher)
    one_token = student.dim() == 2
    tokens = 1 if one_token else student.shape[1]
    operands |= {
        "student": student,
        "teacher": teacher,
        "bank_rows": None if rows is None else rows.contiguous(),
        "teacher_scale": teacher_scale,
        "grad_student": grad_student,
        "token_rows_total": student.shape[0] * tokens,
        "tokens": tokens,
        "features": int(student.shape[-1]),
        "bank_size": teacher.shape[0],
        "student_stride_sample": student.stride(0),
        "student_stride_token": 0 if one_token else student.stride(1),
        "teacher_stride_sample": teacher.stride(0),
        "teacher_stride_token": 0 if one_token else teacher.stride(1),
    }
    if teacher_scale is not None:
        operands["scale_stride_sample"] = teacher_scale.stride(0)
        operands["scale_stride_token"] = 0 if one_token else teacher_scale.stride(1)
    return operands


def with_adjacent_values(tensor: Tensor) -> Tensor:
    """The tensor itself when its last dimension is dense, else a dense copy."""
    return tensor if tensor.shape[-1] <= 1 or tensor.stride(-1) == 1 else tensor.contiguous()


def _power_of_two(n: int) -> int:
    """The smallest power of two that is at least n and 1."""
    return 1 << max(n - 1, 0).bit_length()


@functools.cache
def _multiprocessors(device: torch.device) -> int:
    """Multiprocessors of the GPU; 2 for CPU tensors, so that the interpreter meets several programs."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2
