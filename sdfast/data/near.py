"""Pairs of rows that have a key in common, without comparing all rows with all others."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

_PAIRS = 1 << 20  # given at a time
_MOST_PAIRS = 20_000_000  # of one key each: where there are more rows, keys that many rows have are left out


def pairs_with_equal_keys(
    keys: NDArray[np.unsignedinteger], others: NDArray[np.unsignedinteger]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Places of equal keys in two arrays, in blocks; in bounded time, whatever the keys.

    A key that so many of `keys` have that all of `others` could not be compared with as many is left out.

    Args:
        keys: [n], in any order.
        others: [m].

    Yields:
        Places in `keys`, and in `others`: [k] int64 each.
    """
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    first, last = np.searchsorted(ordered, others, "left"), np.searchsorted(ordered, others, "right")
    counts = last - first
    counts[counts > max(_MOST_PAIRS // max(len(others), 1), 16)] = 0
    found = np.flatnonzero(counts)
    ends = np.cumsum(counts[found])
    at = 0
    while at < len(found):
        begin = int(ends[at - 1]) if at else 0
        until = max(int(np.searchsorted(ends, begin + _PAIRS, "right")), at + 1)
        block = found[at:until]
        number = counts[block]
        inside = np.arange(number.sum()) - np.repeat(np.cumsum(number) - number, number)
        yield order[np.repeat(first[block], number) + inside], np.repeat(block, number)
        at = until
