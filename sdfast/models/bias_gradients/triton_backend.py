"""The launches of the Triton kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

ROWS, COLUMNS = 32, 128  # that a program holds at once: 32 numbers a thread, in loads of 16 bytes
WARPS = 4
PROGRAMS = 8 * 132  # eight on each multiprocessor of an H100; other cards take what comes
FEWEST_ROWS = 4 * ROWS  # of a program
_SUMS = torch.float32


def launch_gelu_backward(kernel: Any, grad: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """See `reference.gelu_backward`."""
    grad, x = grad.contiguous(), x.contiguous()
    rows, columns = x.shape
    blocks, chunks, rows_of_program = _grid(rows, columns)
    out, partial = x.new_empty(x.shape), x.new_empty((chunks, columns), dtype=_SUMS)
    kernel[(blocks, chunks)](
        grad, x, out, partial, rows, columns, rows_of_program, ROWS=ROWS, COLUMNS=COLUMNS, num_warps=WARPS
    )
    return out, partial.sum(dim=0)


def launch_join(kernel: Any, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """See `reference.join`."""
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
