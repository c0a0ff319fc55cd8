"""How fast a stage trains, and how near that is to what the device can do."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch

from sdfast.engine.clock import Lap
from sdfast.engine.peak import matmul_peak


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
