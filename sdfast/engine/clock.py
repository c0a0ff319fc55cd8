"""The host's time while a stage trains, without waiting for a device."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

from sdfast.data.waiting import seconds_waited


@dataclass(frozen=True)
class Lap:
    """Some steps in a row.

    Attributes:
        seconds: that they took.
        steps: how many.
        rows: that they trained on, over all processes.
        waited: of the seconds, those in which this process waited for data.
    """

    seconds: float
    steps: int
    rows: int
    waited: float


class Clock:
    """Laps of training; `seconds` is the time of all of them, with those of a run that this one resumes."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.start(0, 0)

    def start(self, steps: int, rows: int) -> None:
        """Begin a lap after so many steps and rows."""
        self._steps, self._rows = steps, rows
        self._since, self._waited = time.monotonic(), seconds_waited()

    def lap(self, steps: int, rows: int) -> Lap:
        """End a lap after so many steps and rows, and begin the next."""
        ended = time.monotonic()
        lap = Lap(ended - self._since, steps - self._steps, rows - self._rows, seconds_waited() - self._waited)
        self.seconds += lap.seconds
        self._steps, self._rows = steps, rows
        self._since, self._waited = ended, self._waited + lap.waited
        return lap

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """The time of the block is no lap's: it is not spent on training."""
        began, waited = time.monotonic(), seconds_waited()
        try:
            yield
        finally:
            self._since += time.monotonic() - began
            self._waited += seconds_waited() - waited
