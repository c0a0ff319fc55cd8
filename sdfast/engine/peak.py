"""The device's own matrix-multiplication rate, measured: what a step's FLOP/s are a share of."""

from __future__ import annotations

import functools
import time

import torch

from sdfast.ops.linear.fp32_matmul import bf16x6, bf16x6_is_on, has_bf16_products, mm

_SECONDS = 0.25  # spent on repeats; about twice as much in all
_SATURATED = 0.01  # seconds that one product takes at a size that is large enough
_SIZES = (1024, 2048, 4096, 8192)
_REPEATS = 12
_best: dict[tuple[str, torch.dtype, str, int], float] = {}  # by device, dtype, float32 setting and threads


def matmul_peak(device: torch.device, dtype: torch.dtype, anew: bool = False) -> float:
    """FLOP/s of a square product on the device, the best of a few; kept for the process, by setting and threads.

    Products are measured as the layers compute them: on a GPU TF32 where torch is set so, on a CPU as
    `sdfast.ops.linear.fp32_matmul` does. Torch's own random numbers are left alone.

    Args:
        device: where.
        dtype: of both factors and of the product.
        anew: measure again, and keep the better: something else may have run the first time.
    """
    setting = _float32_products(device) if dtype == torch.float32 else ""
    key = (str(device), dtype, setting, torch.get_num_threads())
    if anew or key not in _best:
        _best[key] = max(_best.get(key, 0.0), _measured(str(device), dtype))
    return _best[key]


def peak_name(device: torch.device, dtype: torch.dtype) -> str:
    """What a person calls that arithmetic: `fp32`, `tf32`, `bf16`."""
    if dtype == torch.float32 and device.type == "cuda" and torch.get_float32_matmul_precision() != "highest":
        return "tf32"
    return {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.float64: "fp64"}[dtype]


def _float32_products(device: torch.device) -> str:
    if device.type == "cpu":
        return "bf16x6" if bf16x6_is_on() else "ieee"
    return torch.get_float32_matmul_precision()


def _measured(device: str, dtype: torch.dtype) -> float:
    size = 0
    for larger in _SIZES:
        needed = 4 * larger * larger * dtype.itemsize  # for the factors and the product, with room to spare
        if size and device.startswith("cuda") and needed >= torch.cuda.mem_get_info(device)[0]:
            break
        size = larger
        # Drawn, as a GPU multiplies constants faster; from a generator of its own, so that no seed's stream moves.
        generator = torch.Generator(device).manual_seed(0)
        factors = [torch.randn(size, size, generator=generator, device=device).to(dtype) for _ in range(2)]
        product = torch.empty((size, size), dtype=dtype, device=device)
        seconds = [_seconds(factors, product) for _ in range(2)]  # the first one warms up
        if seconds[-1] >= _SATURATED or size == _SIZES[-1]:
            break
    spent = seconds[-1]
    while len(seconds) < _REPEATS and spent < _SECONDS:
        seconds.append(_seconds(factors, product))
        spent += seconds[-1]
    if device.startswith("cuda"):
        del factors, product
        torch.cuda.empty_cache()
    return 2 * size**3 / min(seconds)


def _seconds(factors: list[torch.Tensor], product: torch.Tensor) -> float:
    if product.device.type != "cuda":
        own = {torch.float32: bf16x6 if bf16x6_is_on() else None, torch.bfloat16: None if has_bf16_products() else mm}
        multiply = own.get(product.dtype) or functools.partial(torch.mm, out=product)
        started = time.perf_counter()
        multiply(*factors)
        return time.perf_counter() - started
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    torch.mm(factors[0], factors[1], out=product)
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000
