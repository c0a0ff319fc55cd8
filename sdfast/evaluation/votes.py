"""One answer for an item of several rows, as a long document of chunks: the mean of what the rows say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def vote(logits: Tensor, items: Tensor, count: int) -> Tensor:
    """The logarithm of the mean of the rows' probabilities, for each item.

    It is used as logits are: its softmax is that mean, and its cross-entropy is minus its logarithm at the label.

    Args:
        logits: [rows, classes], of one kind of floating point.
        items: [rows] int64: which item, 0 to count - 1, each row is of, in any order; every item has a row.
        count: items.

    Returns:
        [count, classes] of the logits' type, computed in float64; of an item of one row its log-softmax.
    """
    rows = logits.double().log_softmax(dim=1)
    whole = torch.full((count, logits.shape[1]), -torch.inf, dtype=torch.float64, device=logits.device)
    index = items.to(logits.device)[:, None].expand_as(rows)
    largest = whole.scatter_reduce(0, index, rows, "amax")
    sums = torch.zeros_like(whole).scatter_add(0, index, (rows - largest[items.to(logits.device)]).exp())
    voters = items.bincount(minlength=count).to(logits.device)
    return (sums.log() + largest - voters.double().log()[:, None]).to(logits.dtype)


def voters(item_of: NDArray[np.int64], items: Tensor) -> tuple[Tensor, Tensor]:
    """The rows that vote for some items.

    Args:
        item_of: [N]: which item each row is of, ascending.
        items: [n] int64, each once, in any order.

    Returns:
        rows: [m] int64: those of the first item, those of the second, ...
        places: [m] int64: of each row the place of its item in `items`.
    """
    first = np.searchsorted(item_of, items.numpy())
    counts = np.searchsorted(item_of, items.numpy(), side="right") - first
    places = np.repeat(np.arange(len(counts)), counts)
    inside = np.arange(len(places)) - np.repeat(np.cumsum(counts) - counts, counts)
    return torch.from_numpy(first[places] + inside), torch.from_numpy(places)


def answers_of(split: Any, rows: Tensor, voting: Any, answers: Callable[[Any, Tensor], Tensor]) -> Tensor:
    """What a classifier says of some rows of a split, or what the rows that vote for them say together.

    Args:
        split: of the items.
        rows: [n] int64 of it.
        voting: the view of it whose rows vote (see `Modality.voting`); None where each item is one row.
        answers: gives the logits of rows [m] of the split, or of the view: [m, classes].

    Returns:
        [n, classes]; see `vote`.
    """
    if voting is None:
        return answers(split, rows)
    cast, places = voters(voting.item_of, rows)
    return vote(answers(voting, cast), places, len(rows))
