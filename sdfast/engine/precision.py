"""In which numbers a step computes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn

from sdfast.config import EngineConfig
from sdfast.errors import UserError
from sdfast.launch import place
from sdfast.log import log
from sdfast.ops.linear.fp32_matmul import bf16x6_is_on, float32_products, why_not_bf16x6

_HALVES = {"bf16": torch.bfloat16, "bf16-weights": torch.bfloat16, "fp16": torch.float16}
_PRODUCTS = {
    "bf16": "bf16 autocast, TF32 for what stays in float32",
    "bf16-weights": "bf16 with float32 masters",
    "fp16": "fp16 autocast with a scaled loss, TF32 for what stays in float32",
    "tf32": "float32 with TF32 products",
}


def resolve_precision(requested: str, device: torch.device) -> str:
    """`auto` becomes `bf16` on a GPU that has it and `fp32` elsewhere (most CPUs run bf16 far slower; AMX is rare)."""
    if requested != "auto":
        return requested
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"


def products_dtype(requested: str, device: torch.device) -> torch.dtype:
    """What matrix products of a float32 model take in."""
    return _HALVES.get(resolve_precision(requested, device), torch.float32)


def autocast(requested: str, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Inside, matrix products are of the requested half precision, if it is one."""
    half = _HALVES.get(resolve_precision(requested, device))
    return contextlib.nullcontext() if half is None else torch.autocast(device.type, half)


def matmul_dtype(requested: str, device: torch.device, module: nn.Module) -> torch.dtype | None:
    """Of the matrix products; None where they are of several."""
    half = _HALVES.get(resolve_precision(requested, device))
    if half is not None:
        return half
    dtypes = {parameter.dtype for parameter in module.parameters()}
    return dtypes.pop() if len(dtypes) == 1 else None


@contextlib.contextmanager
def matmul_precision(requested: str, device: torch.device) -> Iterator[None]:
    """Inside, float32 products of a GPU run in TF32, unless `fp32` is asked for."""
    before = torch.get_float32_matmul_precision()
    if device.type == "cuda":
        precision = resolve_precision(requested, device)
        torch.set_float32_matmul_precision("highest" if precision == "fp32" else "high")
        log.info("precision: %s", _PRODUCTS.get(precision, "float32"))
    elif products_dtype(requested, device) == torch.float32 and bf16x6_is_on():
        log.info("precision: float32 with bf16x6 products")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextlib.contextmanager
def cpu_settings(engine: EngineConfig) -> Iterator[None]:
    """A CPU computes as `engine.threads` and, inside, as `engine.fp32_products` says.

    Raises:
        UserError: bf16x6 without the compiled core, or in one of several processes.
    """
    if engine.threads is not None:
        torch.set_num_threads(engine.threads)
    if engine.fp32_products == "bf16x6":
        reason = why_not_bf16x6() if place().world == 1 else "several processes keep to torch's products"
        if reason is not None:
            raise UserError(f"engine.fp32_products=bf16x6 cannot be used here: {reason}; use auto.")
    with float32_products(engine.fp32_products):
        yield


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """Inside, float32 products are full ones, whatever training computes in: as when a stage's end is evaluated."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
