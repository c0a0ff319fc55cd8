"""What the loss is given to match: computed beside the student, or read from a bank by row."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from torch import Tensor


class Targets(NamedTuple):
    """Arguments of `mae_distill_loss`.

    Attributes:
        teacher: [B, D] or [B, N, D]; or a bank, [n, D] or [n, N, D]; None when nothing is matched.
        rows: [B] int64, the bank's row of each sample; None without a bank.
        scale: [n] or [n, N] float32, of an int8 teacher's tokens; None for others.
    """

    teacher: Tensor | None
    rows: Tensor | None = None
    scale: Tensor | None = None


class Teacher(Protocol):
    """Where targets come from."""

    @property
    def static(self) -> bool:
        """Whether `targets` computes on the device alone, from tensors that stay in place, in every epoch alike."""
        ...

    def announce(self, rows: Tensor, epoch: int) -> None:
        """Say which rows [B] of the split (on the CPU) a batch has that will be asked for, and in which epoch."""
        ...

    def targets(self, inputs: Any, rows: Tensor, epoch: int, /) -> Targets:
        """The targets of some samples.

        Args:
            inputs: the samples, unmasked, on the device: [B, C, H, W] normalised pixels, or a `TokenBatch`.
            rows: [B] int64 on the CPU, which rows of the split they are.
            epoch: decides which view of each row it is (epoch modulo views), where there are several.
        """
        ...


class ResidentBank:
    """A bank in the memory of the device; the loss reads it by row, nothing is gathered."""

    def __init__(self, features: Tensor, scale: Tensor | None, bank_rows: Tensor) -> None:
        """Hold a bank.

        Args:
            features: [n, D] or [n, N, D], on the device.
            scale: [n] or [n, N] float32 for int8 features, there too.
            bank_rows: [K, m] int64: for each view and row of the split its row of the bank, -1 where it has none.
        """
        self.features, self.scale, self.bank_rows = features, scale, bank_rows.to(features.device)

    @property
    def static(self) -> bool:
        """Whether all epochs read the same view, so that `targets` depends on the rows alone."""
        return len(self.bank_rows) == 1

    def announce(self, rows: Tensor, epoch: int) -> None:
        """Nothing to do."""

    def targets(self, inputs: Any, rows: Tensor, epoch: int) -> Targets:
        """The whole bank, and which of its rows the samples have."""
        view = self.bank_rows[epoch % len(self.bank_rows)]
        return Targets(self.features, view[rows.to(view.device, non_blocking=True)], self.scale)
