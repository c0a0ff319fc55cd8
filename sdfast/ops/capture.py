"""A function's work as one CUDA graph, and a process that goes on as before where that fails."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any, TypeVar

import torch

T = TypeVar("T")

_unended: list[Any] = []  # graphs that an old torch still asks whether a stream is theirs


def capture_cuda_graph(function: Callable[[], T]) -> tuple[Callable[[], None], T]:
    """A function's graph on the current device: what replays it, and its outputs, which a replay fills.

    Other threads may use the GPU meanwhile. Where it fails the first error is raised, and what had been begun is
    ended: streams, memory and random numbers are as they were.
    """
    torch.cuda.synchronize()
    stream, device = torch.cuda.current_stream(), torch.cuda.current_device()
    generator = torch.cuda.default_generators[device]
    numbers = generator.get_state()
    graph, pool = torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
    failure: BaseException | None = None
    try:
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            try:
                outputs = function()
            except BaseException as error:
                failure = error
                raise
    except BaseException as error:
        torch.cuda.set_stream(stream)  # torch does not return to it where the end of the capture fails
        _give_back(graph, pool, device)
        _free(generator, numbers)
        failure = failure or error  # of the two, the end's says less
    if failure is not None:
        try:
            raise failure
        finally:
            del failure  # or it and this frame would hold each other, and the tensors of the function
    return graph.replay, outputs


def is_out_of_memory(error: BaseException) -> bool:
    """Whether it says, in one of torch's ways, that the GPU's memory is full."""
    return isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error)


def _give_back(graph: torch.cuda.CUDAGraph, pool: Any, device: int) -> None:
    """End a failed graph's hold on memory: of its pool, and of all that is allocated.

    torch 2.11 and 2.12 leave both where the end of a capture fails, and `torch.cuda.empty_cache` raises from then on
    (pytorch#180395); 2.13 leaves the pool, which costs memory and cannot be told from here (pytorch#190348).
    """
    with contextlib.suppress(RuntimeError):
        graph.reset()
    try:
        torch._C._cuda_endAllocateToPool(device, pool)
    except RuntimeError:
        return  # torch has ended it
    torch._C._cuda_releasePool(device, pool)
    _unended.append(graph)  # pinned memory is still allocated by asking this object, and nothing ends that


def _free(generator: torch.Generator, numbers: torch.Tensor) -> None:
    """Have random numbers drawn again as before a capture that failed: an old torch takes it to be going on."""
    try:
        torch.empty(1, device=generator.device).uniform_(generator=generator)
    except RuntimeError:
        generator.graphsafe_set_state(torch.Generator(generator.device))
    generator.set_state(numbers)
