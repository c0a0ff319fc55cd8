"""The Triton kernels and their launches. Importing this module imports triton; it runs on a GPU, or on CPU tensors
under ``TRITON_INTERPRET=1``.

A program takes some columns of some rows, and leaves the sum of its rows; the partial sums are added afterwards, so the
result is the same in every run.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

ROWS, COLUMNS = 32, 128  # that a program holds at once: 32 numbers a thread, in loads of 16 bytes
WARPS = 4
PROGRAMS = 8 * 132  # eight on each multiprocessor of an H100; other cards take what comes
FEWEST_ROWS = 4 * ROWS  # of a program
_SUMS = torch.float32


@triton.jit
def gelu_backward_kernel(
    grad, x, out, partial, rows, columns, rows_of_program, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """out = grad GELU'(x), all [rows, columns] and dense; partial [programs, columns] = its sums."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    first = tl.program_id(1) * rows_of_program
    last = tl.minimum(first + rows_of_program, rows)
    total = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
    for start in range(first, last, ROWS):
        row = start + tl.arange(0, ROWS)[:, None]
        live = (row < last) & (column < columns)
        at = row.to(tl.int64) * columns + column
        value = tl.load(x + at, mask=live, other=0.0).to(tl.float32)
        slope = 0.5 * (1.0 + tl.erf(value * 0.7071067811865476))
        slope += value * tl.exp(-0.5 * value * value) * 0.3989422804014327
        made = tl.load(grad + at, mask=live, other=0.0).to(tl.float32) * slope
        total += made
        tl.store(out + at, made.to(out.dtype.element_ty), mask=live)
    sums = tl.sum(total, axis=0)[None, :]
    tl.store(partial + tl.program_id(1) * columns + column, sums, mask=column < columns)


@triton.jit
def join_kernel(
    q,
    k,
    v,
    out,
    partial,
    rows,
    columns,
    q_stride,
    k_stride,
    v_stride,
    rows_of_program,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """out [rows, 3, columns] = q, k, v, each [rows, columns], rows dense; partial [programs, 3, columns] = its sums."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    first = tl.program_id(1) * rows_of_program
    last = tl.minimum(first + rows_of_program, rows)
    part = tl.program_id(2)
    source, stride = q, q_stride
    if part == 1:
        source, stride = k, k_stride
    if part == 2:
        source, stride = v, v_stride
    total = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
    for start in range(first, last, ROWS):
        row = start + tl.arange(0, ROWS)[:, None]
        live = (row < last) & (column < columns)
        value = tl.load(source + row.to(tl.int64) * stride + column, mask=live, other=0.0)
        total += value.to(tl.float32)
        tl.store(out + (row.to(tl.int64) * 3 + part) * columns + column, value, mask=live)
    sums = tl.sum(total, axis=0)[None, :]
    tl.store(partial + (tl.program_id(1) * 3 + part) * columns + column, sums, mask=column < columns)


def launch_gelu_backward(grad: Tensor, x: Tensor, kernel: Any = gelu_backward_kernel) -> tuple[Tensor, Tensor]:
    """What `reference.gelu_backward` specifies; `kernel` may be what stands for it."""
    grad, x = grad.contiguous(), x.contiguous()
    rows, columns = x.shape
    blocks, chunks, rows_of_program = _grid(rows, columns)
    out, partial = x.new_empty(x.shape), x.new_empty((chunks, columns), dtype=_SUMS)
    kernel[(blocks, chunks)](
        grad, x, out, partial, rows, columns, rows_of_program, ROWS=ROWS, COLUMNS=COLUMNS, num_warps=WARPS
    )
    return out, partial.sum(dim=0)


def launch_join(q: Tensor, k: Tensor, v: Tensor, kernel: Any = join_kernel) -> tuple[Tensor, Tensor]:
    """What `reference.join` specifies; `kernel` may be what stands for it."""
    rows, heads, dim = q.shape
    columns = heads * dim
    q, k, v = (_dense_rows(each.reshape(rows, columns)) for each in (q, k, v))
    _, chunks, rows_of_program = _grid(rows, 3 * columns)
    blocks = -(-columns // COLUMNS)  # of each of the three
    out, partial = q.new_empty((rows, 3, heads, dim)), q.new_empty((chunks, 3 * columns), dtype=_SUMS)
    kernel[(blocks, chunks, 3)](
        q,
        k,
        v,
        out,
        partial,
        rows,
        columns,
        q.stride(0),
        k.stride(0),
        v.stride(0),
        rows_of_program,
        ROWS=ROWS,
        COLUMNS=COLUMNS,
        num_warps=WARPS,
    )
    return out, partial.sum(dim=0)


def _grid(rows: int, columns: int) -> tuple[int, int, int]:
    """Blocks of columns, chunks of rows, and the rows of a chunk."""
    blocks = -(-columns // COLUMNS)
    rows_of_program = max(FEWEST_ROWS, -(-rows * blocks // PROGRAMS))
    rows_of_program = -(-rows_of_program // ROWS) * ROWS
    return blocks, max(1, -(-rows // rows_of_program)), rows_of_program


def _dense_rows(matrix: Tensor) -> Tensor:
    return matrix if matrix.stride(1) == 1 else matrix.contiguous()
