"""How a stage ends early: on a signal, which all processes agree on, or because another process hangs."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from sdfast.launch import LAST_WORDS, may_speak
from sdfast.log import log
from sdfast.ranks import Ranks, control_group

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Set by the handler, read by the loop."""

    def __init__(self) -> None:
        self.signal_number: int | None = None


@contextlib.contextmanager
def stop_on_signal(patient: bool = False) -> Iterator[StopRequest]:
    """Catch the first SIGINT or SIGTERM inside the block, to stop at a step's end; a second one ends the process.

    Outside the main thread (a notebook's worker) nothing is caught.

    Args:
        patient: also catch those that follow: a launcher sends its own after that of the terminal, and ends what does
            not stop in its time.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    previous = {number: signal.getsignal(number) for number in _SIGNALS}

    def handle(number: int, frame: FrameType | None) -> None:
        if request.signal_number is None:
            request.signal_number = number
            once_more = "" if patient else " (once more to stop at once)"
            log.warning("%s: saving after this step%s", signal.Signals(number).name, once_more)
        if not patient:
            for each in _SIGNALS:
                signal.signal(each, signal.SIG_DFL)

    for number in _SIGNALS:
        signal.signal(number, handle)
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class Agreement:
    """Largest values over all processes, a step late: the exchange runs behind the step that follows.

    One process alone gets its values at once. A process that is gone makes the next call fail in every other.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self._under_way: tuple[torch.Tensor, Any] | None = None

    def of(self, *values: int) -> tuple[int, ...]:
        """Give this process's values of a step; get what all gave at the step before (zeros at the first)."""
        if self.ranks.world == 1:
            return values
        agreed = self.last() or (0,) * len(values)
        mine = torch.tensor(values, dtype=torch.int64)
        self._under_way = (mine, dist.all_reduce(mine, dist.ReduceOp.MAX, group=control_group(), async_op=True))
        return agreed

    def last(self) -> tuple[int, ...] | None:
        """Wait for the exchange under way and get its result; None when there is none."""
        if self._under_way is None:
            return None
        (values, work), self._under_way = self._under_way, None
        work.wait()
        return tuple(values.tolist())


class Watchdog:
    """A thread beside the loop, which a collective that never returns cannot stop.

    In one process alone it does nothing. When the loop has not said `alive` for the time given, the process writes one
    sentence and exits with code 1; its launcher then ends the others.
    """

    def __init__(self, ranks: Ranks, seconds: float, what: str) -> None:
        self.ranks, self.seconds, self.what = ranks, seconds, what
        self._ended = threading.Event()
        self._last = time.monotonic()

    def __enter__(self) -> Watchdog:
        self.alive()
        if self.ranks.world > 1:
            threading.Thread(target=self._watch, name="sdfast-watchdog", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()

    def alive(self) -> None:
        """The loop goes on."""
        self._last = time.monotonic()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """The block may take as long as it takes."""
        self._last = math.inf
        try:
            yield
        finally:
            self.alive()

    def _watch(self) -> None:
        while not self._ended.wait(min(1.0, self.seconds / 4)):
            if time.monotonic() - self._last > self.seconds:
                threading.Timer(LAST_WORDS, os._exit, (1,)).start()
                if may_speak():
                    sys.stderr.write(
                        f"sdfast: {self.what} did not go on for {self.seconds:g} s (engine.timeout_seconds), because"
                        " another process of this job hangs or is far slower, so all of it ends; what is done is saved,"
                        " and the same command continues from there.\n"
                    )
                    sys.stderr.flush()
                os._exit(1)
