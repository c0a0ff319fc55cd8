"""The order of the rows: a pure function of (seed, step), so that a resumed run needs no loader state."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sdfast.rng import random_permutation


@dataclass(frozen=True)
class Batch:
    """The address of one batch: which rows, in which epoch."""

    epoch: int
    rows: Tensor  # [B] int64, on the CPU


class BatchOrder:
    """Shuffled epochs for ever, the last partial batch of each kept (as the paper's loader did)."""

    def __init__(self, rows: Tensor, batch_size: int, seed: int) -> None:
        """rows: [n] int64, the rows of the split that take part."""
        self.rows = rows
        self.batch_size = batch_size
        self.seed = seed
        self.batches_per_epoch = -(-len(rows) // batch_size)
        self._epoch = -1
        self._permutation = rows[:0]

    def batch(self, step: int) -> Batch:
        """The batch of a step (counted from 0)."""
        epoch, position = divmod(step, self.batches_per_epoch)
        if epoch != self._epoch:
            self._permutation = self.rows[random_permutation(self.seed, epoch, len(self.rows))]
            self._epoch = epoch
        return Batch(epoch, self._permutation[position * self.batch_size : (position + 1) * self.batch_size])


def all_batches(rows: Tensor, batch_size: int) -> list[Batch]:
    """The rows in order, for evaluation."""
    return [Batch(0, part) for part in torch.split(rows, batch_size)] if len(rows) else []
