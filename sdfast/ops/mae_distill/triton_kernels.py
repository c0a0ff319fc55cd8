"""The Triton kernels. Importing this module imports triton; it runs on a GPU, or on CPU tensors under
``TRITON_INTERPRET=1``.

Two launches: one counts the masked patches on the device, one reads everything once and writes the gradients.
A program takes every n-th tile of rows, so its partial sums are the same every run; the program that finishes last
adds all partial sums in a fixed order.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def count_kernel(mask, counters, total, HAS_MASK: tl.constexpr, BLOCK: tl.constexpr):
    """counters[0] = masked patches (``total`` without a mask), counters[1] = 0 programs finished. One program."""
    count = total
    if HAS_MASK:
        found = tl.zeros([BLOCK], dtype=tl.int32)
        for start in range(0, total, BLOCK):
            at = start + tl.arange(0, BLOCK)
            found += (tl.load(mask + at, mask=at < total, other=0) != 0).to(tl.int32)
        count = tl.sum(found)
    tl.store(counters, count)
    tl.store(counters + 1, 0)


@triton.jit
def mae_distill_kernel(
    pred,
    images,
    mask,
    mask_ids,
    grad_pred,
    pixel_rows_total,
    rows_per_sample,
    patches,
    patch_columns,
    pred_stride_sample,
    pred_stride_row,
    image_stride_sample,
    image_stride_channel,
    image_stride_row,
    image_stride_column,
    student,
    teacher,
    bank_rows,
    teacher_scale,
    grad_student,
    token_rows_total,
    tokens,
    features,
    bank_size,
    student_stride_sample,
    student_stride_token,
    teacher_stride_sample,
    teacher_stride_token,
    scale_stride_sample,
    scale_stride_token,
    counters,
    partial_sums,
    loss,
    mae,
    distill,
    distill_divisor,
    mae_weight: tl.float64,
    distill_weight: tl.float64,
    GAIN: tl.constexpr,
    OFFSET: tl.constexpr,
    PATCH: tl.constexpr,
    CHANNELS: tl.constexpr,
    NORM_PIX: tl.constexpr,
    WANT_GRAD_PRED: tl.constexpr,
    WANT_GRAD_STUDENT: tl.constexpr,
    WIDE: tl.constexpr,
    PIXEL_ROWS: tl.constexpr,
    PIXEL_BLOCK: tl.constexpr,
    TOKEN_ROWS: tl.constexpr,
    TOKEN_BLOCK: tl.constexpr,
    PROGRAMS_BLOCK: tl.constexpr,
):
    """Both parts, their gradients for a grad_output of 1, and (in the last program) the three results.

    A part sums the squares of this program's rows (patches, then tokens) and writes their gradient on the way. It is
    left out where its first operand is None.
    """
    COMPUTE: tl.constexpr = tl.float64 if WIDE else tl.float32
    program, programs = tl.program_id(0), tl.num_programs(0)
    pixel_divisor = tl.maximum(tl.load(counters), 1).to(tl.float64) * (PATCH * PATCH * CHANNELS)
    one = tl.full([], 1.0, tl.float64)  # keeps the scalar arithmetic below in float64
    token_divisor = one * distill_divisor
    pixel_sum, token_sum = 0.0, 0.0
    if pred is not None:
        factor = (one * 2.0 * mae_weight / pixel_divisor).to(COMPUTE)
        VALUES: tl.constexpr = PATCH * PATCH * CHANNELS
        column = tl.arange(0, PIXEL_BLOCK)[None, :]
        in_patch = column < VALUES
        channel, pixel = column % CHANNELS, column // CHANNELS
        image_offset = (pixel // PATCH) * image_stride_row + (pixel % PATCH) * image_stride_column
        image_offset += channel * image_stride_channel
        total = tl.zeros([PIXEL_ROWS], dtype=COMPUTE)
        for tile in range(program, tl.cdiv(pixel_rows_total, PIXEL_ROWS), programs):
            row = tile * PIXEL_ROWS + tl.arange(0, PIXEL_ROWS).to(tl.int64)
            in_range = row < pixel_rows_total
            sample, position = row // rows_per_sample, row % rows_per_sample
            if mask_ids is None:
                patch, counted = position, tl.load(mask + row, mask=in_range, other=0) != 0
                readable = counted
            else:
                patch, counted = tl.load(mask_ids + row, mask=in_range, other=0), in_range
                readable = in_range & (patch >= 0) & (patch < patches)
            top, left = (patch // patch_columns) * PATCH, (patch % patch_columns) * PATCH
            image_at = sample * image_stride_sample + top * image_stride_row + left * image_stride_column
            live = readable[:, None] & in_patch
            target = tl.load(images + image_at[:, None] + image_offset, mask=live, other=0).to(COMPUTE)
            pred_at = sample * pred_stride_sample + position * pred_stride_row
            predicted = tl.load(pred + pred_at[:, None] + column, mask=live, other=0).to(COMPUTE)
            if GAIN is not None:
                gain, offset = tl.zeros([1, PIXEL_BLOCK], dtype=COMPUTE), tl.zeros([1, PIXEL_BLOCK], dtype=COMPUTE)
                for c in tl.static_range(CHANNELS):
                    gain = tl.where(channel == c, GAIN[c], gain)
                    offset = tl.where(channel == c, OFFSET[c], offset)
                target = tl.where(live, target * gain + offset, 0.0)
            if NORM_PIX:
                mean = tl.sum(target, axis=1) / VALUES
                target = tl.where(live, target - mean[:, None], 0.0)
                variance = tl.sum(target * target, axis=1) / (VALUES - 1)
                target *= (1.0 / tl.sqrt(variance + 1e-6))[:, None]
            difference = tl.where(live, predicted - target, 0.0)
            difference = tl.where((counted & (readable == 0))[:, None], float("nan"), difference)
            total += tl.sum(tl.where(in_patch, difference * difference, 0.0), axis=1)
            if WANT_GRAD_PRED:
                gradient = (difference * factor).to(grad_pred.dtype.element_ty)
                tl.store(grad_pred + row[:, None] * VALUES + column, gradient, mask=in_range[:, None] & in_patch)
        pixel_sum = tl.sum(total)
    if student is not None:
        factor = (one * 2.0 * distill_weight / token_divisor).to(COMPUTE)
        total = tl.zeros([TOKEN_ROWS], dtype=COMPUTE)
        for tile in range(program, tl.cdiv(token_rows_total, TOKEN_ROWS), programs):
            row = tile * TOKEN_ROWS + tl.arange(0, TOKEN_ROWS).to(tl.int64)
            in_range = row < token_rows_total
            sample, token = row // tokens, row % tokens
            if bank_rows is None:
                bank_row = sample
            else:
                bank_row = tl.load(bank_rows + sample, mask=in_range, other=0)
            readable = in_range & (bank_row >= 0) & (bank_row < bank_size)
            student_at = sample * student_stride_sample + token * student_stride_token
            teacher_at = bank_row * teacher_stride_sample + token * teacher_stride_token
            if teacher_scale is not None:
                scale_at = bank_row * scale_stride_sample + token * scale_stride_token
                scale = tl.load(teacher_scale + scale_at, mask=readable, other=0).to(COMPUTE)
            for start in range(0, features, TOKEN_BLOCK):
                feature = start + tl.arange(0, TOKEN_BLOCK)[None, :]
                in_row = feature < features
                live = readable[:, None] & in_row
                target = tl.load(teacher + teacher_at[:, None] + feature, mask=live, other=0).to(COMPUTE)
                if teacher_scale is not None:
                    target *= scale[:, None]
                own = tl.load(student + student_at[:, None] + feature, mask=live, other=0).to(COMPUTE)
                difference = tl.where((in_range & (readable == 0))[:, None], float("nan"), own - target)
                total += tl.sum(tl.where(in_row, difference * difference, 0.0), axis=1)
                if WANT_GRAD_STUDENT:
                    gradient = (difference * factor).to(grad_student.dtype.element_ty)
                    tl.store(
                        grad_student + row[:, None] * features + feature, gradient, mask=in_range[:, None] & in_row
                    )
        token_sum = tl.sum(total)
    tl.store(partial_sums + program, pixel_sum)
    tl.store(partial_sums + programs + program, token_sum)
    tl.debug_barrier()  # both stores of every thread come before this program counts as finished
    finished = tl.atomic_add(counters + 1, 1, sem="acq_rel")
    if finished == programs - 1:
        at = tl.arange(0, PROGRAMS_BLOCK)
        # past the first-level cache, which does not see the other programs' stores
        pixels = tl.load(partial_sums + at, mask=at < programs, other=0.0, cache_modifier=".cg")
        own = tl.load(partial_sums + programs + at, mask=at < programs, other=0.0, cache_modifier=".cg")
        mae_value = tl.sum(pixels.to(tl.float64)) / pixel_divisor
        distill_value = tl.sum(own.to(tl.float64)) / token_divisor
        tl.store(mae, mae_value.to(COMPUTE))
        tl.store(distill, distill_value.to(COMPUTE))
        tl.store(loss, (mae_weight * mae_value + distill_weight * distill_value).to(COMPUTE))
