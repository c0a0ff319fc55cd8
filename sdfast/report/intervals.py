"""95 % intervals of what a test split gave, and of the difference of two models on the same rows."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

DRAWS = 2000  # of a bootstrap
_Z = 1.959963984540054  # of a normal distribution, 97.5 % lie below
_SEED = 20_23  # the same page says the same
_CELLS = 40_000_000  # that are drawn in all, by which fewer draws are made of many rows

Interval = tuple[float, float]
Array = NDArray[np.float64]


def wilson(successes: int, count: int) -> Interval:
    """The score interval of a share (Wilson 1927).

    Raises:
        ValueError: there are no trials.
    """
    if count <= 0:
        raise ValueError("no trials")
    share, z2 = successes / count, _Z * _Z
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = _Z / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def newcombe(one: tuple[int, int], other: tuple[int, int]) -> Interval:
    """That of the difference of two independent shares, the first less the second (Newcombe 1998, method 10).

    Args:
        one, other: successes and trials.
    """
    shares = [successes / count for successes, count in (one, other)]
    (low, high), (low_of_other, high_of_other) = wilson(*one), wilson(*other)
    difference = shares[0] - shares[1]
    below = math.hypot(shares[0] - low, high_of_other - shares[1])
    above = math.hypot(high - shares[0], shares[1] - low_of_other)
    return difference - below, difference + above


def of_matrix(matrix: NDArray[np.int64], metric: Callable[[Array], float]) -> Interval | None:
    """The percentile bootstrap (Efron 1979) of a metric of a confusion matrix, over the rows that it counts.

    Args:
        matrix: [C, C] counts.
        metric: of such a matrix.
    """
    flat = matrix.reshape(-1)
    cells = np.flatnonzero(flat)
    count = int(flat.sum())
    if count < 2:
        return None
    generator, found = np.random.default_rng(_SEED), []
    for _ in range(_draws(len(cells) + matrix.size // 8)):
        drawn = np.zeros(flat.shape, np.float64)
        drawn[cells] = generator.multinomial(count, flat[cells] / count)
        found.append(metric(drawn.reshape(matrix.shape)))
    return _percentiles(found)


def of_rows(count: int, metric: Callable[[NDArray[np.int64]], float]) -> Interval | None:
    """The percentile bootstrap (Efron 1979) of a metric of some rows, or of a difference of two models on them.

    Args:
        count: of the rows.
        metric: of those whose numbers it is given, [count] int64, some of them more than once.
    """
    if count < 2:
        return None
    generator = np.random.default_rng(_SEED)
    return _percentiles([metric(generator.integers(0, count, count)) for _ in range(_draws(10 * count))])


def macro_f1(matrix: Array) -> float:
    """The mean F1 of the classes that have a row or are predicted."""
    right = np.diag(matrix).astype(np.float64)
    total = matrix.sum(axis=0) + matrix.sum(axis=1)
    occurring = total > 0
    return float((2 * right[occurring] / total[occurring]).mean()) if occurring.any() else 0.0


def average_precision(scores: NDArray[np.floating], labels: NDArray[np.bool_]) -> float:
    """The mean precision at the rows of one class, in the order of the scores; equal scores count together.

    Args:
        scores: [n].
        labels: [n], which rows have the class.
    """
    order = np.argsort(-scores, kind="stable")
    hits, ranked = labels[order], scores[order]
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    true = np.cumsum(hits)[ends]
    gained = np.diff(true, prepend=0)
    return float((gained * (true / (ends + 1))).sum() / hits.sum()) if hits.any() else 0.0


def _draws(cells: int) -> int:
    return max(200, min(DRAWS, _CELLS // max(cells, 1)))


def _percentiles(values: list[float]) -> Interval | None:
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) < len(values) / 2:
        return None
    low, high = np.percentile(finite, [2.5, 97.5])
    return float(low), float(high)
