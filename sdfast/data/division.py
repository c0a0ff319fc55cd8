"""Rows that belong together divided among a test split and train, or among folds, with the classes in their shares.

Rows of equal content belong together, and so do rows of one group: whose row each is (`data.group`). What hangs
together by either is one unit, which is never divided.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from sdfast.data.rows import shuffled

_PASSES = 20  # over all units, in which one may move to where the classes are in better shares
_LESS = 1e-9  # a difference that counts


def grouped_test_rows(
    digests: NDArray[np.uint8], labels: NDArray[np.int64], groups: Sequence[str | None], fraction: float, seed: int
) -> NDArray[np.int64]:
    """The rows of a test split of whole groups: as near to `fraction` of every class as groups allow.

    A group is held out with all its rows, those without a label too. Groups that share a copy are one. A class is never
    held out whole. The choice depends on contents, groups and seed alone.

    Args:
        digests: [n, 32] uint8.
        labels: [n] int64, -1 where there is none.
        groups: of each row; None: the row is a group of its own.
        fraction: share in [0, 1).
        seed: another seed, another choice.

    Returns:
        int64 row numbers, ascending; possibly none.
    """
    if fraction == 0:
        return np.zeros(0, np.int64)
    return _rows_of_parts(digests, labels, groups, (fraction, 1 - fraction), f"split {seed}", True)[0]


def fold_rows(
    digests: NDArray[np.uint8], labels: NDArray[np.int64], groups: Sequence[str | None] | None, folds: int, seed: int
) -> list[NDArray[np.int64]]:
    """The rows of each fold: every labelled row is in one of them, the classes in their shares in each.

    Rows of equal content are in one fold, and so are those of one group. Rows without a label are in a fold only with
    such a one. The choice depends on contents, groups and seed alone.

    Args:
        digests: [n, 32] uint8.
        labels: [n] int64, -1 where there is none.
        groups: of each row, None: the row is a group of its own; None where nothing is grouped.
        folds: how many.
        seed: another seed, another choice.

    Returns:
        int64 row numbers of each fold, ascending; some are empty where there are fewer units than folds.
    """
    return _rows_of_parts(digests, labels, groups, (1 / folds,) * folds, f"folds {seed}", False)


def _rows_of_parts(
    digests: NDArray[np.uint8],
    labels: NDArray[np.int64],
    groups: Sequence[str | None] | None,
    shares: Sequence[float],
    key: str,
    spare: bool,
) -> list[NDArray[np.int64]]:
    units = [rows for rows in _units(digests, groups, shuffled(digests, key)) if np.any(labels[rows] >= 0)]
    counts = [Counter(labels[rows][labels[rows] >= 0].tolist()) for rows in units]
    parts: list[list[int]] = [[] for _ in shares]
    for rows, part in zip(units, divided(counts, shares, spare), strict=True):
        parts[part] += rows.tolist()
    return [np.sort(np.asarray(rows, dtype=np.int64)) for rows in parts]


def _units(
    digests: NDArray[np.uint8], groups: Sequence[str | None] | None, order: NDArray[np.int64]
) -> list[NDArray[np.int64]]:
    """The rows of each unit, the units in the order of their first rows in `order`."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    count = len(digests)
    _, first, contents = np.unique(digests, axis=0, return_index=True, return_inverse=True)
    links = [np.stack((np.arange(count), first[contents.reshape(-1)]))]  # to the first row of the content
    if groups is not None:
        seen: dict[str, int] = {}
        firsts = [row if group is None else seen.setdefault(group, row) for row, group in enumerate(groups)]
        links.append(np.stack((np.arange(count), np.asarray(firsts, np.int64))))
    rows, others = np.concatenate(links, axis=1)
    _, unit = connected_components(coo_array((np.ones(len(rows), bool), (rows, others)), shape=(count, count)), False)
    members: dict[int, list[int]] = {}
    for row in order.tolist():
        members.setdefault(int(unit[row]), []).append(row)
    return [np.asarray(rows, np.int64) for rows in members.values()]


def divided(counts: Sequence[Mapping[int, int]], shares: Sequence[float], spare: bool = False) -> list[int]:
    """A part for each unit, so that every part has its share of each class as nearly as units allow.

    Units are placed in their order, each where the sum over parts and classes of (rows - rows wanted)^2 / rows of the
    class grows least, and where that is equal, where the fewest rows are for their share. Then they move, one by one,
    as long as that sum falls.

    Args:
        counts: of each unit: rows by class.
        shares: of each part; their sum is 1.
        spare: the first part never gets all rows of a class.
    """
    total: Counter[int] = Counter()
    for unit in counts:
        total.update(unit)
    held: list[Counter[int]] = [Counter() for _ in shares]
    sizes = [0] * len(shares)
    sums = [sum(unit.values()) for unit in counts]

    def cost(part: int, unit: Mapping[int, int], size: int) -> tuple[float, float]:
        """What a unit that is in no part adds to the sum, rounded, and how full the part would be."""
        of, share = held[part], shares[part]
        if part == 0 and spare and any(of[c] + rows == total[c] for c, rows in unit.items()):
            return np.inf, np.inf
        added = sum(rows * (2 * (of[c] - share * total[c]) + rows) / total[c] for c, rows in unit.items())
        return round(added / _LESS) * _LESS, (sizes[part] + size) / share

    def move(part: int, unit: Mapping[int, int], sign: int) -> None:
        for c, rows in unit.items():
            held[part][c] += sign * rows
            sizes[part] += sign * rows

    parts = [-1] * len(counts)
    for _ in range(_PASSES):
        before = list(parts)
        for number, unit in enumerate(counts):
            if (here := parts[number]) >= 0:
                move(here, unit, -1)
            costs = [cost(part, unit, sums[number]) for part in range(len(shares))]
            best = min(range(len(shares)), key=lambda part: costs[part])
            parts[number] = here if here >= 0 and costs[here] <= costs[best] else best
            move(parts[number], unit, 1)
        if parts == before:
            break
    return parts
