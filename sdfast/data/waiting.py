"""How long the training step waits for data, by the host's clock and without waiting for a device."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

_seconds = 0.0


@contextlib.contextmanager
def waiting() -> Iterator[None]:
    """Count the time of the block as waited, in the thread that trains: its images are read, its targets arrive."""
    global _seconds
    started = time.perf_counter()
    try:
        yield
    finally:
        _seconds += time.perf_counter() - started


def seconds_waited() -> float:
    """Seconds waited by this process so far; take differences."""
    return _seconds
