"""How float32 matrices are multiplied on a CPU: out of six bfloat16 products where AMX makes those cheap.

An Intel processor with AMX computes sixteen times as many bfloat16 products as float32 ones. Three bfloat16 numbers
hold the 24 bits of a float32 one, and the six largest of the nine products of their parts, summed in float32, are as
exact as a float32 product (csrc/cpu/bf16x6.h). Elsewhere torch's MKL and oneDNN multiply. What that is worth:
benchmarks/results/step_cpu_amx.md.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from typing import Literal

import torch
from torch import Tensor

from sdfast.ops import native
from sdfast.ops.cpu_half import cpu_half_is_on

Float32Products = Literal["auto", "ieee", "bf16x6"]
Product = Callable[[Tensor, Tensor, Tensor | None, Tensor | None], Tensor]

_asked: Float32Products = "auto"


@contextlib.contextmanager
def float32_products(how: Float32Products) -> Iterator[None]:
    """Inside, the layers of this package multiply float32 matrices of a CPU so.

    Args:
        how: `ieee`, `bf16x6`, or `auto`, which is bf16x6 on a processor with AMX.

    Raises:
        RuntimeError: bf16x6 without the compiled core, with the reason.
    """
    global _asked
    if how == "bf16x6" and (reason := why_not_bf16x6()) is not None:
        raise RuntimeError(f"bf16x6 products are not available: {reason}")
    before, _asked = _asked, how
    try:
        yield
    finally:
        _asked = before


def why_not_bf16x6() -> str | None:
    """None when such products can be computed (without AMX slowly), else the reason."""
    return native.why_not_operator("bf16x6_product", _register)


def bf16x6_is_on() -> bool:
    """Whether float32 matrices of a CPU are multiplied so now; several processes train in torch's way."""
    wanted = _asked == "bf16x6" or (_asked == "auto" and has_amx(os.environ.get("SDFAST_SIMD")))
    return wanted and not (several_processes() and torch.is_grad_enabled())


def several_processes() -> bool:
    """Whether others share the work: gradients are then reduced as they come, which has to be in one order."""
    return (
        torch.distributed.is_available()
        and torch.distributed.is_initialized()
        and torch.distributed.get_world_size() > 1
    )


@functools.cache
def has_amx(simd: str | None) -> bool:
    """Whether the compiled core is there, and uses AMX; `simd` is SDFAST_SIMD, by which the answer is remembered."""
    return why_not_bf16x6() is None and torch.ops.sdfast.simd_level() == "amx"


def bf16x6(left: Tensor, right: Tensor, bias: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
    """left right (+ bias) (+ residual), of float32 on a CPU; see `why_not_bf16x6`.

    Args:
        left: [M, K].
        right: [K, N].
        bias: [N], or None.
        residual: [M, N], or None.

    Returns:
        [M, N].
    """
    return torch.ops.sdfast.bf16x6_product(left, right, bias, residual)


def onednn(left: Tensor, right: Tensor, bias: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
    """The same with oneDNN's kernels, which take the bias and the residual along; see `why_not_onednn`."""
    if residual is None:
        return torch.ops.mkldnn._linear_pointwise(left, right.t(), bias, "none", [], "")
    return torch.ops.mkldnn._linear_pointwise.binary(left, residual, right.t(), bias, "add")


@functools.cache
def why_not_onednn() -> str | None:
    """None when this torch has the operator, on a processor whose kernels oneDNN is known to win with, else why not."""
    if not torch.backends.mkldnn.is_available() or not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        return "oneDNN is known to win on processors with AVX-512 only, and where torch was built with it"
    there = hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return None if there else f"torch {torch.__version__} has no oneDNN operator for linear layers"


def mm(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """The same of any dtype and device, without a residual: torch's, but for bfloat16 see `has_bf16_products`.

    Without them it multiplies in float32 and rounds the sum, as these do; torch takes ten to fifty times as long. Not
    where `cpu_half` is off, as there memory is to be as on a GPU.
    """
    if left.device.type != "cpu" or left.dtype != torch.bfloat16 or has_bf16_products() or not cpu_half_is_on():
        return _added(left, right, bias)
    with torch.autocast("cpu", enabled=False):  # which would make them bfloat16 again
        wide = _added(left.float(), right.float(), None if bias is None else bias.float())
    return wide.to(torch.bfloat16)


def _added(left: Tensor, right: Tensor, bias: Tensor | None) -> Tensor:
    return left @ right if bias is None else torch.addmm(bias, left, right)


@functools.cache
def has_bf16_products() -> bool:
    """Whether oneDNN has bfloat16 kernels for this processor (from AVX-512 on); without, its operators fail."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


@functools.cache
def _register() -> None:
    """Once a process: torch 2.11 refuses it a second time."""
    torch.library.register_fake("sdfast::bf16x6_product", _decomposed)
    # torch.utils.flop_counter counts what an operator that it does not know decomposes into.
    torch.ops.sdfast.bf16x6_product.default.py_impl(torch._C.DispatchKey.CompositeImplicitAutograd)(_decomposed)


def _decomposed(left: Tensor, right: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    out = left @ right
    for added in (bias, residual):
        out = out if added is None else out + added
    return out
