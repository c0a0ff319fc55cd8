"""Whether a step under bf16 autocast on a CPU is computed by the compiled core: its norms, GELU and linear layers.

torch's autocast converts what its products take, each time in a pass of its own. The operators that ask here hand
bfloat16 from one to the next and keep in float32 what a sum runs over: residuals, statistics, gradients of parameters.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from sdfast.ops import native
from sdfast.ops.registry import Use, choose

_wanted = True


def is_cpu_half(op: str, x: Tensor) -> bool:
    """Whether an operator should compute x so: on a CPU, under bf16 autocast, where its row has a backend for that."""
    return (
        not torch.compiler.is_compiling()  # first: the compiler cannot look into what follows
        and _wanted
        and x.device.type == "cpu"
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
        and choose(op, "auto", "cpu", torch.bfloat16) == "half"
    )


@contextlib.contextmanager
def cpu_half(on: bool) -> Iterator[None]:
    """Inside, bf16 autocast on a CPU computes so, or in torch's way: as on a GPU, as far as memory goes."""
    global _wanted
    before, _wanted = _wanted, on
    try:
        yield
    finally:
        _wanted = before


def cpu_half_is_on() -> bool:
    """Whether it may compute so; see `cpu_half`."""
    return _wanted


def why_not_cpu_half(use: Use) -> str | None:
    """None where the core has these operators, else the reason."""
    if use.device != "cpu" or use.dtype != torch.bfloat16:
        return "it is for bf16 autocast on the CPU"
    return native.why_not_operator("added_norm")
