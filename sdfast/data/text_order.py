"""How a batch of documents is cut into micro-batches of similar lengths, where little is padding."""

from __future__ import annotations

import torch
from torch import Tensor

from sdfast.data.order import Batch, BatchOrder


def length_parts(lengths: Tensor, parts: int) -> list[Tensor]:
    """Split a batch into parts of nearly equal numbers of documents, similar lengths together.

    Args:
        lengths: [B] int64, tokens of the batch's documents.
        parts: micro-batches wanted; none is empty, so at most B come out.

    Returns:
        Positions in the batch, int64, one tensor for each part: the longest documents first, so that the greatest need
        of memory is met at once; equal lengths keep the batch's order.
    """
    order = _longest_first(lengths)
    return list(torch.tensor_split(order, min(parts, len(order)))) if len(order) else []


def budget_parts(lengths: Tensor, token_budget: int) -> list[Tensor]:
    """Split a batch into as few parts as come out when each, padded to its longest document, keeps to a budget.

    Args:
        lengths: [B] int64, tokens of the batch's documents.
        token_budget: documents of a part times its longest one, at most; a longer document is alone.

    Returns:
        As `length_parts`.
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
    """Shuffled epochs of documents, each batch with its split into micro-batches of similar lengths.

    Which documents a batch holds is `BatchOrder`'s choice alone: lengths and budget decide only how it is cut.
    """

    def __init__(
        self,
        rows: Tensor,
        lengths: Tensor,
        batch_size: int,
        seed: int,
        micro_batches: int = 1,
        token_budget: int | None = None,
    ) -> None:
        """Take the documents of a split and how a batch is cut.

        Args:
            rows: [n] int64, the documents of the split that take part.
            lengths: [N] int64, tokens of every document of the split.
            batch_size: documents of a batch.
            seed: of the shuffles.
            micro_batches: parts of a batch, where there is no budget.
            token_budget: see `budget_parts`.
        """
        super().__init__(rows, batch_size, seed)
        self.lengths = lengths
        self.micro_batches = micro_batches
        self.token_budget = token_budget

    def parts(self, batch: Batch) -> list[Tensor]:
        """Positions in the batch, int64, of each micro-batch; together every one once."""
        lengths = self.lengths[batch.rows]
        if self.token_budget is not None:
            return budget_parts(lengths, self.token_budget)
        return length_parts(lengths, self.micro_batches)


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
