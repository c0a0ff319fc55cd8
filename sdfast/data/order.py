"""The order of the rows: a pure function of (seed, step), so that a resumed run needs no loader state.

A batch of documents is cut into micro-batches of similar lengths, where little is padding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sdfast.ranks import Ranks
from sdfast.rng import random_permutation


@dataclass(frozen=True)
class Batch:
    """The address of one batch: which rows, in which epoch.

    Attributes:
        epoch: counted from 0.
        rows: [B] int64, on the CPU: the rows that this process computes.
        whole: [n] int64: the rows that all processes compute together; None when those are `rows`.
        idle: there were fewer rows than processes, and `rows` is one of another's that counts for nothing: every
            process takes part in each exchange.
        micro_batches: slices of `rows`; None leaves it to the engine to cut them. A process with fewer than others
            has empty ones at the end.
    """

    epoch: int
    rows: Tensor
    whole: Tensor | None = None
    idle: bool = False
    micro_batches: tuple[slice, ...] | None = None

    @property
    def count(self) -> int:
        """Rows of all processes, which means are taken over."""
        return len(self.rows if self.whole is None else self.whole)

    def shared(self, ranks: Ranks) -> Batch:
        """One process's part."""
        if ranks.world == 1:
            return self
        rows = self.rows[ranks.part(len(self.rows))]
        return Batch(self.epoch, rows if len(rows) else self.rows[:1], self.rows, not len(rows))


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

    def share(self, step: int, ranks: Ranks) -> Batch:
        """What one process computes of the batch of a step."""
        return self.batch(step).shared(ranks)


def all_batches(rows: Tensor, batch_size: int) -> list[Batch]:
    """The rows in order, for evaluation."""
    return [Batch(0, part) for part in torch.split(rows, batch_size)] if len(rows) else []
