"""An ordered map over threads that keeps only a few elements in memory."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_In = TypeVar("_In")
_Out = TypeVar("_Out")


def available_threads() -> int:
    """CPUs that this process may use, at most 16."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cpus, 16)


def ordered_map(function: Callable[[_In], _Out], elements: Iterable[_In], threads: int) -> Generator[_Out, None, None]:
    """Yield `function(element)` in the order of the elements, with at most 4 per thread in flight.

    The elements are drawn in the calling thread. An exception is raised at its element's place, and what has not
    started by then never runs.
    """
    if threads <= 1:
        yield from map(function, elements)
        return
    pool = ThreadPoolExecutor(threads, thread_name_prefix="sdfast-data")
    pending: deque[Future[_Out]] = deque()
    try:
        for element in elements:
            pending.append(pool.submit(function, element))
            if len(pending) >= 4 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
