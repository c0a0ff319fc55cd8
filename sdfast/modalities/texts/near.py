"""Documents that nearly equal another: most of their runs of three tokens are the same.

A document is the set of its runs of three tokens, and the likeness of two is the share that both have of those that
either has (Jaccard). Of a set the 64 runs of the smallest hashes are kept, of which likeness is told: exactly where the
documents have no more runs (A. Broder, "On the resemblance and containment of documents", 1997).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sdfast.data.near import pairs_with_equal_keys

ALIKE = 0.7  # from which likeness on documents nearly equal each other
FEWEST = 8  # runs of a document that is compared: shorter ones are alike by chance
_KEPT = 64  # hashes of a document
_LEAD = 4  # of these, one of which two documents that are alike have in common with a probability of 0.99
_BLOCK = 1 << 20  # ids at a time
_PAIRS = 1 << 14  # compared at a time
_NONE = np.uint32(0xFFFFFFFF)


@dataclass(frozen=True)
class Sketches:
    """The smallest hashes of some documents.

    Attributes:
        rows: [k] int64, the documents that are long enough to be compared.
        hashes: [k, 64] uint32, ascending, with 2^32 - 1 behind the last.
        sizes: [k] int64, different runs of each.
    """

    rows: NDArray[np.int64]
    hashes: NDArray[np.uint32]
    sizes: NDArray[np.int64]


def sketches(ids: NDArray[np.integer], offsets: NDArray[np.int64], before: int, behind: int) -> Sketches:
    """The sketches of documents.

    Args:
        ids: [T], of all documents one after the other.
        offsets: [n + 1] int64, where each begins.
        before, behind: special tokens at the beginning and the end of a document, which do not count.
    """
    parts = [_block(ids, offsets, first, last, before, behind) for first, last in _blocks(offsets)]
    rows, hashes, sizes = (np.concatenate(each) for each in zip(*parts, strict=True)) if parts else _nothing()
    return Sketches(rows, hashes, sizes)


def _nothing() -> tuple[NDArray[np.int64], NDArray[np.uint32], NDArray[np.int64]]:
    return np.zeros(0, np.int64), np.zeros((0, _KEPT), np.uint32), np.zeros(0, np.int64)


def _blocks(offsets: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    first, count = 0, len(offsets) - 1
    while first < count:
        last = max(int(np.searchsorted(offsets, offsets[first] + _BLOCK, "right")) - 1, first + 1)
        yield first, min(last, count)
        first = last


def _block(
    ids: NDArray[np.integer], offsets: NDArray[np.int64], first: int, last: int, before: int, behind: int
) -> tuple[NDArray[np.int64], NDArray[np.uint32], NDArray[np.int64]]:
    begins, ends = offsets[first:last] + before, offsets[first + 1 : last + 1] - behind
    runs = np.maximum(ends - begins - 2, 0)
    start = np.cumsum(runs) - runs
    at = np.arange(runs.sum()) + np.repeat(begins - start, runs) - offsets[first]
    part = ids[offsets[first] : offsets[last]].astype(np.uint64)
    mixed = np.zeros(len(at), np.uint64)
    for step in range(3):
        mixed = _mixed(mixed ^ part[at + step])
    document = np.repeat(np.arange(last - first, dtype=np.uint64), runs)
    both = np.unique((document << np.uint64(32)) | np.minimum(mixed >> np.uint64(32), np.uint64(_NONE - 1)))
    document, hashed = (both >> np.uint64(32)).astype(np.int64), both.astype(np.uint32)
    sizes = np.bincount(document, minlength=last - first)
    place = np.arange(len(both)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    table = np.full((last - first, _KEPT), _NONE, np.uint32)
    kept = place < _KEPT
    table[document[kept], place[kept]] = hashed[kept]
    rows = np.flatnonzero(sizes >= FEWEST)
    return rows + first, table[rows], sizes[rows]


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Each number as one that is as good as random (the end of SplitMix64)."""
    values = values + np.uint64(0x9E3779B97F4A7C15)
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def nearest(one: Sketches, other: Sketches, alike: float = ALIKE) -> list[tuple[int, int]]:
    """Pairs (row of one, row of the other) of documents that are alike: the most alike of each row of the other."""
    best: dict[int, tuple[float, int]] = {}
    for rows, others in pairs_with_equal_keys(one.hashes[:, :_LEAD].reshape(-1), other.hashes[:, :_LEAD].reshape(-1)):
        pairs = np.unique(np.stack((others // _LEAD, rows // _LEAD)), axis=1)
        sizes = other.sizes[pairs[0]], one.sizes[pairs[1]]
        pairs = pairs[:, np.minimum(*sizes) >= alike * np.maximum(*sizes)]
        for at in range(0, pairs.shape[1], _PAIRS):
            theirs, ours = pairs[:, at : at + _PAIRS]
            likeness = _likeness(one.hashes[ours], other.hashes[theirs])
            for place in np.flatnonzero(likeness >= alike).tolist():
                row, found = int(theirs[place]), (float(likeness[place]), -int(ours[place]))
                best[row] = max(best.get(row, found), found)
    return [(int(one.rows[-best[row][1]]), int(other.rows[row])) for row in sorted(best)]


def _likeness(hashes: NDArray[np.uint32], others: NDArray[np.uint32]) -> NDArray[np.float64]:
    """[k]: the share that both have of all hashes that either has, or of the 64 smallest where one may have more."""
    both = np.sort(np.concatenate((hashes, others), axis=1), axis=1)
    there, again = both != _NONE, np.zeros(both.shape, bool)
    again[:, 1:] = both[:, 1:] == both[:, :-1]
    again &= there
    rank = np.cumsum(there & ~again, axis=1)  # of the different ones, from 1
    cut = (hashes[:, -1] != _NONE) | (others[:, -1] != _NONE)
    last = np.where(cut, _KEPT, rank[:, -1])
    return (again & (rank <= last[:, None])).sum(axis=1) / last
