"""The host's time while a stage trains, how fast that is, and how near to what the device can do."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from sdfast.data.parallel import seconds_waited
from sdfast.engine.peak import matmul_peak


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


class Rate:
    """Turns laps into the numbers of a record."""

    def __init__(
        self,
        flops_per_row: Callable[[], float] | None,
        device: torch.device,
        matmul_dtype: torch.dtype | None,
        devices: int = 1,
    ) -> None:
        """Measure the device's peak, when it will be needed (see `matmul_peak`).

        Args:
            flops_per_row: counts those of a row's step, and is called once, at the first lap; None where nobody can.
            device: where the step runs.
            matmul_dtype: of its matrix products; None where they are of several, which no one peak is the bound of.
            devices: that share the work, each like this one.
        """
        self.flops_per_row = flops_per_row and functools.cache(flops_per_row)
        self.peak: float | None = None
        if flops_per_row is not None and matmul_dtype is not None:
            self.peak = devices * matmul_peak(device, matmul_dtype, anew=True)

    def of(self, lap: Lap) -> dict[str, float]:
        """The numbers of a lap.

        Returns:
            `rate` (rows a second), `wait_share` (0 to 1), `tflops` (TFLOP/s) and `peak_share` (0 to 1, of the measured
            peak), the last two where they are known.
        """
        rate = lap.rows / lap.seconds
        values = {"rate": rate, "wait_share": min(lap.waited / lap.seconds, 1.0)}
        if self.flops_per_row is not None:
            flops = rate * self.flops_per_row()
            values["tflops"] = flops / 1e12
            if self.peak is not None:
                values["peak_share"] = flops / self.peak
        return values
