"""Features as bytes: float64, float32, float16, bfloat16, or int8 with a float32 scale per token."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdfast.errors import RunError
from sdfast.store.rows import Layout

TORCH_DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int8": torch.int8,
}


def encode(features: Tensor, dtype: str) -> list[NDArray[np.uint8]]:
    """Bytes of some rows, one array for each stream of the layout.

    Args:
        features: [b, *shape] finite, float32 (float64 for float64), on the CPU.
        dtype: of the bank.

    Returns:
        [b, bytes] uint8: the features; for int8 then their scales.

    Raises:
        RunError: a feature is too large for float16 or bfloat16.
    """
    if dtype == "int8":
        scale = features.abs().amax(dim=-1) / 127
        scale = torch.where(scale > 0, scale, torch.ones_like(scale))
        return [_bytes((features / scale.unsqueeze(-1)).round().to(torch.int8)), _bytes(scale)]
    if not torch.isfinite(
        torch.stack(torch.aminmax(features)).to(TORCH_DTYPES[dtype])
    ).all():  # rounding keeps the order
        raise RunError(f"the teacher's features do not fit teacher.dtype={dtype}; use float32.")
    return [_bytes(features.to(TORCH_DTYPES[dtype]))]


def decode(streams: list[Tensor], layout: Layout) -> tuple[Tensor, Tensor | None]:
    """Features of some rows from their bytes, without a copy.

    Args:
        streams: [b, bytes] uint8 for each stream of the layout.
        layout: of the bank.

    Returns:
        [b, *shape] in the bank's dtype, and for int8 the scales, [b, *shape[:-1]] float32.
    """
    rows = len(streams[0])
    features = streams[0].view(TORCH_DTYPES[layout.dtype]).view(rows, *layout.shape)
    if len(streams) == 1:
        return features, None
    return features, streams[1].view(torch.float32).view(rows, *layout.shape[:-1])


def widen(features: Tensor, scale: Tensor | None) -> Tensor:
    """The numbers that stored features stand for, float64."""
    return features.double() if scale is None else features.double() * scale.double().unsqueeze(-1)


def quantum(values: Tensor, dtype: str) -> Tensor:
    """Largest distance between a number and what is stored for it, twice over (rounding may go the other way).

    Args:
        values: [b, *shape] float64.
        dtype: of the bank.
    """
    if dtype == "int8":
        return values.abs().amax(dim=-1, keepdim=True) / 127
    smallest = torch.finfo(TORCH_DTYPES[dtype]).smallest_normal
    return values.abs().clamp_min(smallest) * torch.finfo(TORCH_DTYPES[dtype]).eps


def _bytes(values: Tensor) -> NDArray[np.uint8]:
    return values.contiguous().view(len(values), -1).view(torch.uint8).numpy()
