"""Clocks and meters of training steps: arms in turns, the machine's matrix-product peak, memory, host waits."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

Step = Callable[[], Any]
_SYNC = "called a synchronizing CUDA operation"  # torch's words in sync debug mode


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def seconds_of(step: Step, calls: int, device: str) -> float:
    """Seconds a call, averaged over consecutive ones; by events on a GPU, so that the queue stays filled."""
    if device != "cuda":
        start = time.perf_counter()
        for _ in range(calls):
            step()
        return (time.perf_counter() - start) / calls
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    for _ in range(calls):
        step()
    end.record()
    torch.cuda.synchronize()
    return begin.elapsed_time(end) / 1e3 / calls


def calls_for(step: Step, device: str, sample_seconds: float) -> int:
    """How many consecutive calls make a sample of about that length (1 to 200)."""
    return max(1, min(200, round(sample_seconds / max(seconds_of(step, 1, device), 1e-6))))


def allocated(work: Callable[[], object]) -> int:
    """Largest sum of bytes that torch's CPU allocator gave and has not got back while `work` runs."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def turns(steps: dict[str, Step], calls: dict[str, int], device: str, rounds: int) -> dict[str, list[float]]:
    """Seconds a call of every arm, `rounds` samples each, the arms taken in turn and each round beginning elsewhere."""
    names, samples = list(steps), {name: [] for name in steps}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            samples[name].append(seconds_of(steps[name], calls[name], device))
    return samples


def product(size: int, dtype: torch.dtype, device: str) -> Step:
    """A matrix product of random square operands into a kept result: 2 size^3 FLOPs."""
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(left)
    return lambda: torch.mm(left, right, out=out)


def product_rate(size: int, dtype: torch.dtype, device: str, rounds: int = 20) -> float:
    """FLOP/s of `product`, by the median."""
    step = product(size, dtype, device)
    for _ in range(3):
        step()
    calls = calls_for(step, device, 0.01)
    return 2 * size**3 / statistics.median(turns({"": step}, {"": calls}, device, rounds)[""])


@contextmanager
def matmul_precision(tf32: bool) -> Iterator[None]:
    """float32 products on TF32 units, or in float32 proper (torch's default; its convolutions use TF32 anyway)."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def host_waits(step: Step, calls: int = 5) -> float | None:
    """How often a call makes the host wait for the GPU, as torch's sync debug mode counts; None without a GPU."""
    if not torch.cuda.is_available():
        return None
    step()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(calls):
                step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    torch.cuda.synchronize()
    return sum(_SYNC in str(warning.message) for warning in caught) / calls
