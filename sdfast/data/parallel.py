"""Threads that read ahead with only a few elements in memory, and how long the training step waits for data."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from sdfast.portable import processors

_In = TypeVar("_In")
_Out = TypeVar("_Out")

_seconds = 0.0  # waited


def available_threads() -> int:
    """CPUs that this process may use, at most 16."""
    return min(processors(), 16)


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


@contextlib.contextmanager
def waiting() -> Iterator[None]:
    """Count the time of the block as waited, in the thread that trains: its images are read, its targets arrive.

    It is the host's clock, and no device is waited for.
    """
    global _seconds
    started = time.perf_counter()
    try:
        yield
    finally:
        _seconds += time.perf_counter() - started


def seconds_waited() -> float:
    """Seconds waited by this process so far; take differences."""
    return _seconds
