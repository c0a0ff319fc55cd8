"""The order of the rows: a pure function of (seed, step), so that a resumed run needs no loader state.

A batch of documents is cut into micro-batches of similar lengths, where little is padding.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sdfast.ranks import Ranks
from sdfast.rng import STREAM_BALANCE, philox_bits, random_permutation


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
        passes: [B] int64: how many times each of `rows` was taken before, which with `epoch` in its place is the
            address of what is random in it; None where that is `epoch`.
    """

    epoch: int
    rows: Tensor
    whole: Tensor | None = None
    idle: bool = False
    micro_batches: tuple[slice, ...] | None = None
    passes: Tensor | None = None

    @property
    def count(self) -> int:
        """Rows of all processes, which means are taken over."""
        return len(self.rows if self.whole is None else self.whole)

    def shared(self, ranks: Ranks) -> Batch:
        """One process's part."""
        if ranks.world == 1:
            return self
        part = ranks.part(len(self.rows))
        idle = part.start == part.stop
        mine = slice(0, 1) if idle else part
        passes = None if self.passes is None else self.passes[mine]
        return Batch(self.epoch, self.rows[mine], self.rows, idle, passes=passes)


class BatchOrder:
    """Shuffled epochs for ever, the last partial batch of each kept (as the paper's loader did)."""

    def __init__(self, rows: Tensor, batch_size: int, seed: int, classes: Tensor | None = None) -> None:
        """Take the rows of a split.

        Args:
            rows: [n] int64, the rows of the split that take part.
            batch_size: rows of a batch.
            seed: of the shuffles.
            classes: [n] int64, one for each of `rows`: an epoch takes n rows, as many of each class (see
                `balanced_rows`). When not given, it takes each row once.
        """
        self.rows = rows
        self.batch_size = batch_size
        self.seed = seed
        self.batches_per_epoch = -(-len(rows) // batch_size)
        self._members = None if classes is None else [rows[classes == each] for each in classes.unique()]
        self._epoch = -1
        self._taken, self._passes = rows[:0], None if classes is None else rows[:0]

    def epoch(self, number: int) -> tuple[Tensor, Tensor | None]:
        """The rows of an epoch (counted from 0) in order, [n] int64, and the `passes` of these (see `Batch`)."""
        order = random_permutation(self.seed, number, len(self.rows))
        if self._members is None:
            return self.rows[order], None
        rows, passes = balanced_rows(self._members, self.seed, number)
        return rows[order], passes[order]

    def batch(self, step: int) -> Batch:
        """The batch of a step (counted from 0)."""
        epoch, position = divmod(step, self.batches_per_epoch)
        if epoch != self._epoch:
            self._taken, self._passes = self.epoch(epoch)
            self._epoch = epoch
        part = slice(position * self.batch_size, (position + 1) * self.batch_size)
        return Batch(epoch, self._taken[part], passes=None if self._passes is None else self._passes[part])

    def share(self, step: int, ranks: Ranks) -> Batch:
        """What one process computes of the batch of a step."""
        return self.batch(step).shared(ranks)


def balanced_rows(members: list[Tensor], seed: int, epoch: int) -> tuple[Tensor, Tensor]:
    """As many rows of each class as of any other, a pure function of seed and epoch.

    The classes take turns, through all epochs, and each goes through its own rows again and again, in another order
    each time. So at any end of an epoch the classes' counts differ by one at most, as do those of the rows of a class.

    Args:
        members: for each class its rows, int64, none empty; n in all.
        seed: of the orders.
        epoch: counted from 0.

    Returns:
        n rows of this epoch, [n] int64, class after class in turns; and how often each was taken before, [n] int64.
    """
    count = sum(map(len, members))
    turn = torch.arange(count) + epoch * count
    rows, passes = torch.empty_like(turn), torch.empty_like(turn)
    for number, mine in enumerate(members):
        places = slice((number - epoch * count) % len(members), None, len(members))
        taken = turn[places] // len(members)  # of this class, before each
        if not len(taken):
            continue
        passes[places] = taken // len(mine)
        first, last = int(passes[places][0]), int(passes[places][-1])
        each = torch.arange(first, last + 1).repeat_interleave(len(mine))
        bits = philox_bits(seed, each, mine.repeat(last + 1 - first), 2, STREAM_BALANCE)
        orders = (bits[:, 0] << 31 | bits[:, 1] >> 1).view(-1, len(mine)).argsort(dim=1, stable=True)
        rows[places] = mine[orders[passes[places] - first, taken % len(mine)]]
    return rows, passes


def all_batches(rows: Tensor, batch_size: int) -> list[Batch]:
    """The rows in order, for evaluation."""
    return [Batch(0, part) for part in torch.split(rows, batch_size)] if len(rows) else []
