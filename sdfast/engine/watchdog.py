"""Ends a process of several that has been waiting for another for too long."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
import time
from collections.abc import Iterator
from types import TracebackType

from sdfast.launch import may_speak
from sdfast.ranks import Ranks

_LAST_WORDS = 10.0  # seconds in which to say why


class Watchdog:
    """A thread beside the loop, which a collective that never returns cannot stop.

    In one process alone it does nothing. When the loop has not said `alive` for the time given, the process writes one
    sentence and exits with code 1; its launcher then ends the others.
    """

    def __init__(self, ranks: Ranks, seconds: float, what: str) -> None:
        self.ranks, self.seconds, self.what = ranks, seconds, what
        self._ended = threading.Event()
        self._last = time.monotonic()
        self._thread = threading.Thread(target=self._watch, name="sdfast-watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self.alive()
        if self.ranks.world > 1:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
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
                threading.Timer(_LAST_WORDS, os._exit, (1,)).start()
                if may_speak():
                    sys.stderr.write(
                        f"sdfast: {self.what} did not go on for {self.seconds:g} s (engine.timeout_seconds), because"
                        " another process of this job hangs or is far slower, so all of it ends; what is done is saved,"
                        " and the same command continues from there.\n"
                    )
                    sys.stderr.flush()
                os._exit(1)
