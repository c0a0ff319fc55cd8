"""Which attention is fastest on this GPU: each is timed as a step runs it, many times inside one CUDA graph.

Outside of a graph 50 tokens take as long as the host needs to launch their kernels, whichever those are.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from sdfast.ops.attention.groups import Group, Groups
from sdfast.ops.capture import capture_cuda_graph

Function = Callable[[Tensor, Tensor, Tensor, Groups, float], Tensor]
Shape = tuple[tuple[int, int, int], ...]

log = logging.getLogger("sdfast")

_ROUNDS = 10


def fastest(
    functions: Mapping[str, Function], device: torch.device, dtype: torch.dtype, heads: int, dim: int, shape: Shape
) -> str:
    """The name of the fastest function, forward and backward, on numbers drawn for the purpose.

    Args:
        functions: the candidates; one that fails drops out, and `sdpa` is what is left when all do.
        device, dtype: of the operands.
        heads, dim: H and d.
        shape: (batch, queries, keys) of each group.
    """
    # A thread of its own: a compiler that traces, autocast, or what recomputes activations acts in this one.
    with ThreadPoolExecutor(1, thread_name_prefix="sdfast-calibration") as alone:
        seconds = alone.submit(_times, functions, device, dtype, heads, dim, shape).result()
    if not seconds:
        return "sdpa"
    best = min(seconds, key=lambda name: seconds[name])
    times = ", ".join(f"{name} {value * 1e6:.0f} us" for name, value in seconds.items())
    groups = " + ".join(f"{batch} x {queries}" for batch, queries, _ in shape)
    log.info("attention: %s for %s tokens in %d heads of %d (%s)", best, groups, heads, dim, times)
    return best


def _times(
    functions: Mapping[str, Function], device: torch.device, dtype: torch.dtype, heads: int, dim: int, shape: Shape
) -> dict[str, float]:
    seconds = {}
    for name, function in functions.items():
        try:
            seconds[name] = _time(_round(function, device, dtype, heads, dim, shape), device)
        except (RuntimeError, NotImplementedError) as error:
            log.info("attention: %s does not run here (%s)", name, " ".join(str(error).split())[:120])
    torch.cuda.empty_cache()
    return seconds


def _round(
    function: Function, device: torch.device, dtype: torch.dtype, heads: int, dim: int, shape: Shape
) -> Callable[[], None]:
    """One forward and backward pass, on operands that lie as a layer's projections leave them."""
    groups = Groups(tuple(Group(*each) for each in shape))
    queries, keys = sum(groups.query_sizes), sum(groups.key_sizes)
    generator = torch.Generator(device).manual_seed(0)

    def drawn(*size: int) -> Tensor:
        return torch.randn(*size, heads, dim, device=device, generator=generator).to(dtype)

    grad = drawn(queries)
    if all(asking == seen for _, asking, seen in shape):
        leaves = [drawn(keys, 3).requires_grad_()]  # queries, keys and values are of the same tokens
    else:
        leaves = [drawn(queries, 1).requires_grad_(), drawn(keys, 2).requires_grad_()]

    def run() -> None:
        with torch.enable_grad():
            q, k, v = (part for leaf in leaves for part in leaf.unbind(1))
            torch.autograd.grad(function(q, k, v, groups, 0.0), leaves, grad)

    return run


def _time(run: Callable[[], None], device: torch.device) -> float:
    """Seconds of one call, by the device's own clock; inside a graph where it can be captured."""
    with torch.cuda.device(device):
        for _ in range(3):
            run()

        def rounds() -> None:
            for _ in range(_ROUNDS):
                run()

        replay: Callable[[], None] = rounds
        try:
            replay, _ = capture_cuda_graph(rounds)
        except RuntimeError as error:
            log.info("attention: timed without a CUDA graph (%s)", " ".join(str(error).split())[:120])
        replay()
        start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        replay()
        stop.record()
        stop.synchronize()
    return start.elapsed_time(stop) / 1000 / _ROUNDS
