"""The Triton backend: two launches, no host synchronisation, visible to the compiler as a ``triton_op``."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
from torch import Tensor

from sdfast.ops.mae_distill.arguments import Arguments, MaeDistillOutput
from sdfast.ops.mae_distill.fused import TYPES, Outputs, call_operator, empty_outputs, register_autograd
from sdfast.ops.registry import Use

OPERATOR = "sdfast::mae_distill_triton"
PROGRAMS_A_MULTIPROCESSOR = 8
TILE_VALUES = 1024  # values a program holds at once, unless a single patch has more
COUNT_BLOCK = 4096


def why_not_triton(use: Use) -> str | None:
    """None when the kernels can run on such a device, else the reason. Imports triton.

    A torch that refuses the operator is a reason too, as torch changes what it accepts from release to release and
    other backends give the same numbers: a run goes on with one of them, and the choice says why (the tests ask for
    the operator itself, so that a fault of ours does not pass for such a refusal).
    """
    try:
        from sdfast.ops.mae_distill.triton_kernels import mae_distill_kernel
    except ImportError as error:
        return f"triton cannot be imported ({error})"
    if use.device == "cpu" and not _is_interpreted(mae_distill_kernel):
        return "on CPU tensors Triton runs in its interpreter only: set TRITON_INTERPRET=1 before importing triton"
    if use.device not in ("cpu", "cuda"):
        return f"it is not written for {use.device}"
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


def _launch_eagerly(*operands: Any) -> Outputs:
    from sdfast.ops.mae_distill.triton_kernels import count_kernel, mae_distill_kernel

    return launch(count_kernel, mae_distill_kernel, Arguments(*operands))


@functools.cache
def _register() -> None:
    """Define the operator: its body is traced by the compiler, so that both kernels appear in the graph.

    torch derives the schema from the signature, which is that of the operands; a `schema=` of our own is ignored by
    torch 2.11.
    """
    from torch.library import triton_op, wrap_triton

    from sdfast.ops.mae_distill.triton_kernels import count_kernel, mae_distill_kernel

    def traceable(kernel: Any) -> Any:
        return kernel if _is_interpreted(kernel) else wrap_triton(kernel)  # torch 2.11 wraps no interpreted one

    def mae_distill_triton(*operands: Any) -> Outputs:
        return launch(traceable(count_kernel), traceable(mae_distill_kernel), Arguments(*operands))

    by_name = inspect.Parameter.POSITIONAL_OR_KEYWORD
    operands = [inspect.Parameter(name, by_name, annotation=kind) for name, (kind, _) in TYPES.items()]
    mae_distill_triton.__dict__["__signature__"] = inspect.Signature(operands, return_annotation=Outputs)
    triton_op(OPERATOR, mae_distill_triton, mutates_args=())
    register_autograd(OPERATOR)


def _is_interpreted(kernel: Any) -> bool:
    from triton.runtime.interpreter import InterpretedFunction

    return isinstance(kernel, InterpretedFunction)


def launch(count_kernel: Any, kernel: Any, a: Arguments) -> Outputs:
    """Launch the two kernels; results as ``sdfast::mae_distill``, of whose operands `a` consists."""
    outputs = empty_outputs(a)
    loss, mae, distill, grad_pred, grad_student = outputs
    pixels, tokens = _pixel_operands(a, grad_pred), _token_operands(a, grad_student)
    pixel_block = _power_of_two(pixels["PATCH"] ** 2 * pixels["CHANNELS"])
    token_block = min(_power_of_two(tokens["features"]), 2 * TILE_VALUES)
    pixel_tile, token_tile = max(1, TILE_VALUES // pixel_block), max(1, TILE_VALUES // token_block)
    tiles = max(-(-pixels["pixel_rows_total"] // pixel_tile), -(-tokens["token_rows_total"] // token_tile), 1)
    most_programs = PROGRAMS_A_MULTIPROCESSOR * _multiprocessors(loss.device)
    programs = min(tiles, most_programs)
    counters = loss.new_empty((2,), dtype=torch.int32)
    total, mask, student = pixels["pixel_rows_total"], pixels["mask"], a.student
    count_kernel[(1,)](mask, counters, total, HAS_MASK=mask is not None, BLOCK=COUNT_BLOCK, num_warps=8)
    kernel[(programs,)](
        **pixels,
        **tokens,
        counters=counters,
        partial_sums=loss.new_empty((2 * programs,)),
        loss=loss,
        mae=mae,
        distill=distill,
        distill_divisor=1 if student is None else max(1, student.numel() if a.distill_mean else student.shape[0]),
        mae_weight=a.mae_weight,
        distill_weight=a.distill_weight,
        NORM_PIX=a.norm_pix,
        WANT_GRAD_PRED=a.want_grad_pred,
        WANT_GRAD_STUDENT=a.want_grad_student,
        WIDE=loss.dtype == torch.float64,
        PIXEL_ROWS=pixel_tile,
        PIXEL_BLOCK=pixel_block,
        TOKEN_ROWS=token_tile,
        TOKEN_BLOCK=token_block,
        PROGRAMS_BLOCK=_power_of_two(most_programs),
        num_warps=4 if max(pixel_block, token_block) <= 2048 else 8 if pixel_block <= 8192 else 16,
    )
    return outputs


def _pixel_operands(a: Arguments, grad_pred: Tensor) -> dict[str, Any]:
    if a.pred is None or a.images is None:
        return _NO_PIXELS
    pred, images = with_adjacent_values(a.pred), a.images
    columns = images.shape[3] // a.patch_size
    scaled: Any = zip(a.mean, a.std, strict=True) if a.mean and a.std else ()  # type: ignore[arg-type]
    gain_offset = [(1.0 / (255.0 * std), -mean / std) for mean, std in scaled]
    return {
        "pred": pred,
        "images": images,
        "mask": None if a.mask is None else a.mask.contiguous(),
        "mask_ids": None if a.mask_ids is None else a.mask_ids.contiguous(),
        "grad_pred": grad_pred,
        "pixel_rows_total": pred.shape[0] * pred.shape[1],
        "rows_per_sample": pred.shape[1],
        "patches": (images.shape[2] // a.patch_size) * columns,
        "patch_columns": columns,
        "pred_stride_sample": pred.stride(0),
        "pred_stride_row": pred.stride(1),
        "image_stride_sample": images.stride(0),
        "image_stride_channel": images.stride(1),
        "image_stride_row": images.stride(2),
        "image_stride_column": images.stride(3),
        "GAIN": tuple(gain for gain, _ in gain_offset) or None,
        "OFFSET": tuple(offset for _, offset in gain_offset) or None,
        "PATCH": a.patch_size,
        "CHANNELS": int(images.shape[1]),
    }


def _token_operands(a: Arguments, grad_student: Tensor) -> dict[str, Any]:
    if a.student is None or a.teacher is None:
        return _NO_TOKENS
    student, teacher, scale = with_adjacent_values(a.student), with_adjacent_values(a.teacher), a.teacher_scale
    one_token = student.dim() == 2
    tokens = 1 if one_token else student.shape[1]
    return {
        "student": student,
        "teacher": teacher,
        "bank_rows": None if a.rows is None else a.rows.contiguous(),
        "teacher_scale": scale,
        "grad_student": grad_student,
        "token_rows_total": student.shape[0] * tokens,
        "tokens": tokens,
        "features": int(student.shape[-1]),
        "bank_size": teacher.shape[0],
        "student_stride_sample": student.stride(0),
        "student_stride_token": 0 if one_token else student.stride(1),
        "teacher_stride_sample": teacher.stride(0),
        "teacher_stride_token": 0 if one_token else teacher.stride(1),
        "scale_stride_sample": 0 if scale is None else scale.stride(0),
        "scale_stride_token": 0 if scale is None or one_token else scale.stride(1),
    }


# What the kernel is given in place of an absent part, which it leaves out.
_NO_PIXELS: dict[str, Any] = {
    **dict.fromkeys(("pred", "images", "mask", "mask_ids", "grad_pred", "GAIN", "OFFSET")),
    **dict.fromkeys(("pixel_rows_total", "rows_per_sample", "patches", "patch_columns"), 0),
    **dict.fromkeys(("pred_stride_sample", "pred_stride_row", "image_stride_sample", "image_stride_channel"), 0),
    **dict.fromkeys(("image_stride_row", "image_stride_column"), 0),
    **dict.fromkeys(("PATCH", "CHANNELS"), 1),
}
_NO_TOKENS: dict[str, Any] = {
    **dict.fromkeys(("student", "teacher", "bank_rows", "teacher_scale", "grad_student")),
    **dict.fromkeys(("token_rows_total", "bank_size", "student_stride_sample", "student_stride_token"), 0),
    **dict.fromkeys(("teacher_stride_sample", "teacher_stride_token", "scale_stride_sample", "scale_stride_token"), 0),
    **dict.fromkeys(("tokens", "features"), 1),
}


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
