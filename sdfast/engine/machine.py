"""How this machine computes a stage: in which numbers, with which memory, and what decides the last bits of a sum."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import nn

from sdfast.config import EngineConfig
from sdfast.engine.waiting import waiting_adapts
from sdfast.errors import UserError
from sdfast.launch import launch_info
from sdfast.log import log
from sdfast.ops import native
from sdfast.ops.linear.fp32_matmul import (
    bf16x6_is_on,
    float32_products,
    has_bf16_products,
    several_processes,
    why_not_bf16x6,
)
from sdfast.portable import c_library

_HALVES = {"bf16": torch.bfloat16, "bf16-weights": torch.bfloat16, "fp16": torch.float16}
_PRECISIONS = {
    "bf16": "bf16 autocast, TF32 for what stays in float32",
    "bf16-weights": "bf16 with float32 masters",
    "fp16": "fp16 autocast with a scaled loss, TF32 for what stays in float32",
    "tf32": "float32 with TF32 products",
}
_ARITHMETIC = {
    "device": "device",
    "processes": "number of processes",
    "threads": "number of threads",
    "processor": "kind of processor",
    "core": "compiled core",
    "products": "float32 products",
}
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # mallopt(3)
_NEVER, _DEFAULT = 2**31 - 1, 128 * 1024


def resolve_precision(requested: str, device: torch.device) -> str:
    """`auto` becomes `bf16` on a GPU that has it and `fp32` elsewhere (most CPUs run bf16 far slower; AMX is rare)."""
    if requested != "auto":
        return requested
    return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"


def matmul_dtype(requested: str, device: torch.device) -> torch.dtype:
    """What matrix products of a float32 model take in."""
    return _HALVES.get(resolve_precision(requested, device), torch.float32)


def only_matmul_dtype(requested: str, device: torch.device, module: nn.Module) -> torch.dtype | None:
    """The dtype of a module's matrix products; None where they are of several."""
    half = matmul_dtype(requested, device)
    dtypes = {parameter.dtype for parameter in module.parameters()} if half == torch.float32 else {half}
    return dtypes.pop() if len(dtypes) == 1 else None


def autocast(requested: str, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Inside, matrix products are of the requested half precision, if it is one."""
    half = matmul_dtype(requested, device)
    return contextlib.nullcontext() if half == torch.float32 else torch.autocast(device.type, half)


@contextlib.contextmanager
def fp32_matmul(requested: str, device: torch.device) -> Iterator[None]:
    """Inside, float32 matrices of a GPU are multiplied in TF32, unless `fp32` is asked for; the log says in what."""
    if device.type == "cuda":
        precision = resolve_precision(requested, device)
        log.info("precision: %s", _PRECISIONS.get(precision, "float32"))
        with torch_fp32_matmul("highest" if precision == "fp32" else "high"):
            yield
        return
    dtype = matmul_dtype(requested, device)
    if dtype == torch.float32 and bf16x6_is_on():
        log.info("precision: float32 with bf16x6 products")
    if dtype == torch.bfloat16 and not has_bf16_products():
        log.info("precision: bf16, whose products this processor has to compute in float32; fp32 is as fast here")
    yield


@contextlib.contextmanager
def torch_fp32_matmul(precision: str) -> Iterator[None]:
    """Inside, torch's float32 products are of a precision; the end of a stage is evaluated in `highest`."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextlib.contextmanager
def cpu_settings(engine: EngineConfig, device: torch.device) -> Iterator[None]:
    """A CPU computes as `engine.threads` and, inside, as `engine.fp32_products` says; threads wait as `waiting` says.

    Where a GPU computes, nobody waits for the CPU's threads for long, and they wait as they did.

    Raises:
        UserError: bf16x6 without the compiled core, or in one of several processes.
    """
    if engine.threads is not None:
        torch.set_num_threads(engine.threads)
    if engine.fp32_products == "bf16x6":
        reason = why_not_bf16x6() if launch_info().world == 1 else "several processes keep to torch's products"
        if reason is not None:
            raise UserError(f"engine.fp32_products=bf16x6 cannot be used here: {reason}; use auto.")
    waiting = waiting_adapts() if device.type == "cpu" else contextlib.nullcontext()
    with float32_products(engine.fp32_products), waiting:
        yield


@contextlib.contextmanager
def freed_pages_kept(device_type: str = "cpu") -> Iterator[bool]:
    """Inside the block, glibc neither maps large blocks one by one nor gives freed memory back to the system.

    Fresh pages cost more than a memory-bound operation that fills them.

    Args:
        device_type: where the block computes; elsewhere than on a CPU nothing is changed.

    Yields:
        whether the C library took the settings; elsewhere than on glibc nothing is changed.
    """
    library = c_library()
    if library is None or device_type != "cpu" or not all(hasattr(library, n) for n in ("mallopt", "malloc_trim")):
        yield False
        return
    taken = [library.mallopt(name, _NEVER) == 1 for name in (_TRIM_THRESHOLD, _MMAP_THRESHOLD)]
    try:
        yield all(taken)
    finally:
        for name in (_TRIM_THRESHOLD, _MMAP_THRESHOLD):
            library.mallopt(name, _DEFAULT)
        library.malloc_trim(0)


def arithmetic(device: torch.device) -> dict[str, int | str]:
    """What decides the last bits besides a stage's inputs: of a CPU the order of its sums, by threads and registers.

    `core` is how wide the compiled core's loops are on this processor, or as SDFAST_SIMD makes them.
    """
    world = torch.distributed.get_world_size() if several_processes() else 1
    if device.type == "cuda":
        return {"device": torch.cuda.get_device_name(device), "processes": world}
    return {
        "device": "CPU",
        "processes": world,
        "threads": torch.get_num_threads(),
        "processor": torch.backends.cpu.get_cpu_capability(),
        "core": str(torch.ops.sdfast.simd_level()) if native.available() else "none",
        "products": "bf16x6" if bf16x6_is_on() else "ieee",
    }


def changed_arithmetic(before: Mapping[str, int | str] | None, now: Mapping[str, int | str]) -> str | None:
    """What differs, for a sentence, as "number of threads: 1 before, now 2"; None where nothing does or is known to."""
    if before is None:
        return None
    both = [name for name in _ARITHMETIC if name in before and name in now and before[name] != now[name]]
    return ", ".join(f"{_ARITHMETIC[name]}: {before[name]} before, now {now[name]}" for name in both) or None
