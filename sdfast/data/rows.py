"""Rows on the disk: a .npy file written as the rows come, and the choice of rows for a split or a limit."""

from __future__ import annotations

import hashlib
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

_HEADER = 128  # bytes; a multiple of 64, as the format asks for


class RowWriter:
    """Writes rows to a .npy file (format 1.0) whose number of rows is known only at the end.

    Use as a context manager; the file is a valid array when the block ends.
    """

    def __init__(
        self, path: Path, row_shape: tuple[int, ...], dtype: DTypeLike = np.uint8, onto: int | None = None
    ) -> None:
        """Begin a file.

        Args:
            path: of the file.
            row_shape: of one row.
            dtype: of its elements.
            onto: how many rows the file has already, of this shape and type, which stay; None begins it anew.
        """
        self.rows = onto or 0
        self._row_shape = row_shape
        self._dtype = np.dtype(dtype)
        self._file = open(path, "wb" if onto is None else "r+b", buffering=1 << 20)  # noqa: SIM115 - by __exit__
        if onto is None:
            self._file.write(bytes(_HEADER))
        else:
            self._file.seek(0, 2)

    def append(self, row: NDArray[Any]) -> None:
        """Add one row of the shape and type given at the start."""
        if row.shape != self._row_shape or row.dtype != self._dtype:
            raise ValueError(f"a row is {self._row_shape} {self._dtype}, not {row.shape} {row.dtype}")
        self.extend(row[None])

    def extend(self, rows: NDArray[Any]) -> None:
        """Add rows, [k, *shape]."""
        if rows.shape[1:] != self._row_shape or rows.dtype != self._dtype:
            raise ValueError(f"rows are {self._row_shape} {self._dtype}, not {rows.shape[1:]} {rows.dtype}")
        self._file.write(np.ascontiguousarray(rows).data)
        self.rows += len(rows)

    def __enter__(self) -> RowWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._file.seek(0)
                self._file.write(_npy_header((self.rows, *self._row_shape), self._dtype))
        finally:
            self._file.close()


def _npy_header(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    text = repr({"descr": dtype.str, "fortran_order": False, "shape": shape})
    magic = b"\x93NUMPY\x01\x00" + (_HEADER - 10).to_bytes(2, "little")
    return magic + text.encode().ljust(_HEADER - 11) + b"\n"


def row_digest(row: NDArray[np.uint8]) -> bytes:
    """SHA-256 (32 bytes) of a row's shape (little-endian int64) and its bytes."""
    digest = hashlib.sha256(np.asarray(row.shape, dtype="<i8").tobytes())
    digest.update(np.ascontiguousarray(row).data)
    return digest.digest()


def stratified_rows(
    digests: NDArray[np.uint8], labels: NDArray[np.int64] | None, limit: int | None, seed: int
) -> NDArray[np.int64]:
    """`limit` rows, int64 ascending, in which the classes keep their shares, chosen by content and seed.

    Every class gives its first row before any gives its second; from there on the counts follow the shares, at most
    one row above them. Rows without a label come after all that have one: fine-tuning takes those with a label alone,
    and few labelled rows beside many others would hardly be left in a limit. A smaller limit is a subset of a larger
    one, and the choice depends on neither the names nor the order of the rows.

    Args:
        digests: [n, 32] uint8.
        labels: [n] int64, -1 where there is none, or None for one class.
        limit: rows wanted; None or more than there are: all of them.
        seed: another seed, another choice.
    """
    count = len(digests)
    if limit is None or limit >= count:
        return np.arange(count)
    order = _shuffled(digests, f"limit {seed}")
    classes = np.zeros(count, dtype=np.int64) if labels is None else labels
    share = np.empty(count)
    for label in np.unique(classes):
        members = order[classes[order] == label]
        share[members] = np.arange(len(members)) / len(members)
    share[classes == -1] += 1  # those of a class are in [0, 1)
    ranked = order[np.argsort(share[order], kind="stable")]
    return np.sort(ranked[:limit])


def held_out_rows(
    digests: NDArray[np.uint8], labels: NDArray[np.int64], fraction: float, seed: int
) -> NDArray[np.int64]:
    """The rows of a test split: `fraction` of every class, rounded; rows of equal content stay on one side.

    The choice depends on the contents and the seed alone. A class is the rows that have its label: rows without a label
    count in none and are never held out, nor is a row of which a copy has no label, nor the last distinct content of a
    class. Copies under several labels count in the class of the first that has one.

    Args:
        digests: [n, 32] uint8.
        labels: [n] int64, -1 where there is none.
        fraction: share in [0, 1).
        seed: another seed, another choice.

    Returns:
        int64 row numbers, ascending; possibly none.
    """
    copies: dict[bytes, list[int]] = {}
    for row in _shuffled(digests, f"split {seed}"):
        copies.setdefault(digests[row].tobytes(), []).append(int(row))
    classes: dict[int, list[list[int]]] = {}
    for rows in copies.values():
        if labelled := [int(labels[row]) for row in rows if labels[row] >= 0]:
            classes.setdefault(labelled[0], []).append(rows)
    chosen: list[int] = []
    for contents in classes.values():
        wanted = int(fraction * sum(np.sum(labels[rows] >= 0) for rows in contents) + 0.5)
        for rows in contents[:-1]:
            if len(rows) <= wanted and np.all(labels[rows] >= 0):
                chosen += rows
                wanted -= len(rows)
    return np.sort(np.asarray(chosen, dtype=np.int64))


def duplicate_rows(digests: NDArray[np.uint8], others: NDArray[np.uint8]) -> list[tuple[int, int]]:
    """Pairs (row, first row of `others` with the same content) for the rows that have one, in order."""
    first: dict[bytes, int] = {}
    for row in range(len(others)):
        first.setdefault(others[row].tobytes(), row)
    pairs = ((row, first.get(digests[row].tobytes())) for row in range(len(digests)))
    return [(row, other) for row, other in pairs if other is not None]


def _shuffled(digests: NDArray[np.uint8], key: str) -> NDArray[np.int64]:
    """Row numbers in an order that depends on contents and key; equal contents keep the order of their rows."""
    prefix = hashlib.sha256(key.encode()).digest()
    keys = [(hashlib.sha256(prefix + digest.tobytes()).digest(), row) for row, digest in enumerate(digests)]
    return np.fromiter((row for _, row in sorted(keys)), dtype=np.int64, count=len(keys))
