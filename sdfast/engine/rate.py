"""How fast a stage trains, and how near that is to what the device can do."""

from __future__ import annotations

import torch

from sdfast.costs.peak import matmul_peak


class Rate:
    """Turns images and seconds into the numbers of a record."""

    def __init__(
        self,
        flops_per_image: float | None,
        device: torch.device,
        matmul_dtype: torch.dtype | None,
        devices: int = 1,
    ) -> None:
        """Measure the device's peak, when it will be needed (see `matmul_peak`).

        Args:
            flops_per_image: of one image's step; None where nobody knows.
            device: where the step runs.
            matmul_dtype: of its matrix products; None where they are of several, which no one peak is the bound of.
            devices: that share the work, each like this one.
        """
        self.flops_per_image = flops_per_image
        self.peak: float | None = None
        if flops_per_image is not None and matmul_dtype is not None:
            self.peak = devices * matmul_peak(device, matmul_dtype, anew=True)

    def of(self, images: int, seconds: float, waited: float) -> dict[str, float]:
        """The numbers of some steps, by the host's clock.

        Args:
            images: seen.
            seconds: that took.
            waited: of those, spent waiting for data.

        Returns:
            `rate` (images a second), `wait_share` (0 to 1), `tflops` (TFLOP/s) and `peak_share` (0 to 1, of the
            measured peak), the last two where they are known.
        """
        rate = images / seconds
        values = {"rate": rate, "wait_share": min(waited / seconds, 1.0)}
        if self.flops_per_image is not None:
            values["tflops"] = rate * self.flops_per_image / 1e12
            if self.peak is not None:
                values["peak_share"] = rate * self.flops_per_image / self.peak
        return values
