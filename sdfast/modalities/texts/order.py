"""The order of texts: documents of a batch lie by length, and a batch is cut where padding would be too much."""

from __future__ import annotations

import itertools
from dataclasses import replace

import torch
from torch import Tensor

from sdfast.data.order import Batch, BatchOrder
from sdfast.ranks import Ranks


def budget_parts(lengths: Tensor, token_budget: int) -> list[Tensor]:
    """Split a batch into as few parts as come out when each, padded to its longest document, keeps to a budget.

    Args:
        lengths: [B] int64, tokens of the batch's documents.
        token_budget: documents of a part times its longest one, at most; a longer document is alone.

    Returns:
        Positions in the batch, int64, one tensor for each part: the longest documents first, so that the greatest need
        of memory is met at once; equal lengths keep the batch's order.
    """
    order = _longest_first(lengths)
    parts: list[Tensor] = []
    start = 0
    while start < len(order):
        most = max(1, token_budget // max(1, int(lengths[order[start]])))
        parts.append(order[start : start + most])
        start += most
    return parts


class TextBatchOrder(BatchOrder):
    """Shuffled epochs of documents; those of a batch that one process computes lie in the order of their lengths.

    So consecutive micro-batches hold similar lengths. Which documents a batch holds is `BatchOrder`'s choice alone:
    lengths and budget decide only how it is cut.
    """

    def __init__(
        self,
        rows: Tensor,
        lengths: Tensor,
        batch_size: int,
        seed: int,
        token_budget: int | None = None,
        classes: Tensor | None = None,
    ) -> None:
        """Take the documents of a split and how a batch is cut.

        Args:
            rows: [n] int64, the documents of the split that take part.
            lengths: [N] int64, tokens of every document of the split.
            batch_size: documents of a batch.
            seed: of the shuffles.
            token_budget: see `budget_parts`; None leaves it to the engine to cut a batch.
            classes: see `BatchOrder`.
        """
        super().__init__(rows, batch_size, seed, classes)
        self.lengths = lengths
        self.token_budget = token_budget

    def share(self, step: int, ranks: Ranks) -> Batch:
        """What one process computes of a step's batch: the longest documents first, cut as often in every process."""
        batch = self.batch(step)
        mine = batch.shared(ranks)
        order = _longest_first(self.lengths[mine.rows])
        cut = None if self.token_budget is None else self._micro_batches(batch, ranks, self.token_budget)
        passes = None if mine.passes is None else mine.passes[order]
        return replace(mine, rows=mine.rows[order], micro_batches=cut, passes=passes)

    def _micro_batches(self, batch: Batch, ranks: Ranks, token_budget: int) -> tuple[slice, ...]:
        shares = [batch.shared(replace(ranks, rank=rank)).rows for rank in range(ranks.world)]
        sizes = [[len(part) for part in budget_parts(self.lengths[rows], token_budget)] for rows in shares]
        none = [0] * (max(map(len, sizes)) - len(sizes[ranks.rank]))
        ends = list(itertools.accumulate(sizes[ranks.rank] + none))
        return tuple(slice(start, stop) for start, stop in zip([0, *ends], ends, strict=False))


def sorted_batches(rows: Tensor, lengths: Tensor, token_budget: int) -> list[Batch]:
    """Every document once, similar lengths together, for evaluation and the teacher's bank.

    Args:
        rows: [n] int64.
        lengths: [N] int64, tokens of every document of the split.
        token_budget: see `budget_parts`.
    """
    return [Batch(0, rows[part]) for part in budget_parts(lengths[rows], token_budget)] if len(rows) else []


def _longest_first(lengths: Tensor) -> Tensor:
    return torch.sort(lengths, descending=True, stable=True).indices
