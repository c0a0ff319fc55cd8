"""One answer for an item of several rows, as a long document of chunks: the mean of what the rows say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

Means = Literal["softmax", "sigmoid", "output"]


def vote(logits: Tensor, items: Tensor, count: int, of: Means = "softmax") -> Tensor:
    """What is used as the logits of each item: such that its probabilities are the mean of its rows' probabilities.

    With `softmax` it is the logarithm of that mean, so that cross-entropy is minus its logarithm at the label; with
    `sigmoid`, where several classes may apply, the log-odds of each class's; with `output`, of numbers, their own mean.

    Args:
        logits: [rows, classes], of one kind of floating point.
        items: [rows] int64: which item, 0 to count - 1, each row is of, in any order; every item has a row.
        count: items.
        of: what probabilities are of logits.

    Returns:
        [count, classes] of the logits' type, computed in float64.
    """
    rows = logits.double()
    if of == "output":
        found = torch.zeros(count, logits.shape[1], dtype=torch.float64, device=logits.device)
        found = found.scatter_reduce(0, _index(items, rows), rows, "mean", include_self=False)
    elif of == "sigmoid":
        found = _log_mean(F.logsigmoid(rows), items, count) - _log_mean(F.logsigmoid(-rows), items, count)
    else:
        found = _log_mean(rows.log_softmax(dim=1), items, count)
    return found.to(logits.dtype)


def _log_mean(logs: Tensor, items: Tensor, count: int) -> Tensor:
    """[count, classes] float64: the logarithm of the mean of some rows' exponentials, for each item."""
    index = _index(items, logs)
    empty = torch.full((count, logs.shape[1]), -torch.inf, dtype=torch.float64, device=logs.device)
    largest = empty.scatter_reduce(0, index, logs, "amax")
    sums = torch.zeros_like(empty).scatter_add(0, index, (logs - largest.gather(0, index)).exp())
    return sums.log() + largest - items.to(logs.device).bincount(minlength=count).double().log()[:, None]


def _index(items: Tensor, rows: Tensor) -> Tensor:
    return items.to(rows.device)[:, None].expand_as(rows)


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


def answers_of(
    split: Any, rows: Tensor, voting: Any, answers: Callable[[Any, Tensor], Tensor], of: Means = "softmax"
) -> Tensor:
    """What a classifier says of some rows of a split, or what the rows that vote for them say together.

    Args:
        split: of the items.
        rows: [n] int64 of it.
        voting: the view of it whose rows vote (see `Modality.voting`); None where each item is one row.
        answers: gives the logits of rows [m] of the split, or of the view: [m, classes].
        of: see `vote`.

    Returns:
        [n, classes]; see `vote`.
    """
    if voting is None:
        return answers(split, rows)
    cast, places = voters(voting.item_of, rows)
    return vote(answers(voting, cast), places, len(rows), of)
