"""How training steps call the image and representation loss, without numbers: what its kernels are compiled for.

At the size of the paper's models: batches of 64 images of 224 by 224 pixels, width 768, 75 % of 196 patches masked.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from sdfast.ops.mae_distill import triton_backend
from sdfast.ops.mae_distill.arguments import Arguments

BATCH, PATCHES, MASKED, WIDTH, ROWS = 64, 196, 147, 768, 2048
MULTIPROCESSORS = 132  # of an H100


@contextmanager
def multiprocessors_of_an_h100() -> Iterator[None]:
    """On which the number of programs depends."""
    with mock.patch.object(triton_backend, "_multiprocessors", return_value=MULTIPROCESSORS):
        yield


class Recorder:
    """Stands for a kernel: keeps what it was launched with, and computes nothing."""

    def __init__(self) -> None:
        self.launches: list[tuple[tuple[int, ...], tuple[Any, ...], dict[str, Any]]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda *positional, **named: self.launches.append((grid, positional, named))


def tensor(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def ids(*shape: int) -> Tensor:
    return tensor(*shape, dtype=torch.int64)


def pixels(masked: int = MASKED, patch: int = 16, dtype: torch.dtype = torch.bfloat16) -> dict[str, Any]:
    """The operands of the pixel part: predictions of the masked patches, and float32 pixels."""
    values = 3 * patch * patch
    images = tensor(BATCH, 3, 224, 224)
    pred = tensor(BATCH, masked, values, dtype=dtype)
    return {"pred": pred, "images": images, "mask_ids": ids(BATCH, masked), "patch_size": patch, "want_grad_pred": True}


def bank(student: Tensor, *shape: int, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """The operands of the representation part: a student, and a bank of the teacher's with such rows."""
    scale = tensor(ROWS, *shape[:-1]) if dtype == torch.int8 else None
    teacher, rows = tensor(ROWS, *shape, dtype=dtype), ids(len(student))
    return {"student": student, "teacher": teacher, "rows": rows, "teacher_scale": scale, "want_grad_student": True}


@dataclass(frozen=True)
class Call:
    """A call of a training step, and how many loads and stores of 16 bytes a thread makes of it at least."""

    operands: dict[str, Any]
    loads: int
    stores: int


CLS, ALL = tensor(BATCH, WIDTH), tensor(BATCH, 1 + PATCHES, WIDTH)
# A thread has 8 of a tile's 1,024 values: one access of 16 bytes in bfloat16, two in float32, none in int8. What is
# gathered from images is read value by value, as are predictions whose rows do not begin at multiples of 16 bytes.
CALLS = {
    "distill with a bank": Call({**pixels(), **bank(CLS, WIDTH)}, 5, 3),
    "distill with a live teacher": Call({**pixels(), **bank(CLS, WIDTH), "teacher": CLS, "rows": None}, 5, 3),
    "distill, CLS inside a longer row": Call({**pixels(), **bank(ALL[:, 0], WIDTH)}, 5, 3),
    "distill, patches": Call({**pixels(), **bank(ALL[:, 1:], PATCHES, WIDTH)}, 5, 3),
    "distill, all tokens, int8 bank": Call({**pixels(), **bank(ALL, 1 + PATCHES, WIDTH, dtype=torch.int8)}, 3, 3),
    "distill, all patches predicted": Call(
        {
            **pixels(),
            "pred": tensor(BATCH, 1 + PATCHES, 768, dtype=torch.bfloat16)[:, 1:],
            "mask_ids": None,
            "mask": tensor(BATCH, PATCHES, dtype=torch.bool),
            **bank(CLS, WIDTH),
        },
        5,
        3,
    ),
    "distill, patch 14": Call({**pixels(192, 14), **bank(CLS, WIDTH)}, 4, 2),
    "distill, fp16": Call({**pixels(dtype=torch.float16), **bank(CLS, WIDTH)}, 5, 3),
    "pretrain": Call({**pixels(), "distill_weight": 0.0}, 1, 1),
    "pretrain, uint8 images": Call(
        {**pixels(), "images": tensor(BATCH, 3, 224, 224, dtype=torch.uint8), "mean": [0.5] * 3, "std": [0.25] * 3},
        1,
        1,
    ),
    "distill of texts": Call(bank(CLS, WIDTH), 4, 2),
}


def launch(count_kernel: Any, kernel: Any, **operands: Any) -> None:
    """Launch what stands for the kernels with a call's operands; those that are not named are left out."""
    with multiprocessors_of_an_h100():
        triton_backend.launch(count_kernel, kernel, Arguments(**operands))
