"""What several processes decide together at every step, without waiting for each other."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from sdfast.launch import control_group
from sdfast.ranks import Ranks


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
