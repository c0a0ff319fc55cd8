"""Rows of numbers on the disk, all of one shape: files of many rows, and a checksum for each block of a few.

Beside the manifest of whoever keeps them lie

* `checksums.bin`: [blocks, 32] uint8, SHA-256 of each block;
* `features-00000.bin`, ...: the numbers, little-endian, row after row, `rows_per_shard` rows in each file;
* `scales-00000.bin`, ...: for int8, the float32 scale of each token, in the same order;
* `rows.bin`: [n, 32] uint8, the digest of what each row is of.

No file name, size or offset is read from a manifest: all follow from the number of rows, their shape and dtype, and
are compared with the files that are there. Nothing is ever unpickled.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from sdfast.portable import NEVER_WAIT, NO_LINKS, NOT_INHERITED, read_into_at, write_at
from sdfast.regular import naming, of_the_file
from sdfast.store.artifact import Each, Stored

ROWS, CHECKSUMS = "rows.bin", "checksums.bin"
DIGEST_BYTES = 32

_ITEM_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}
_LARGEST = 1 << 48  # of any number in a layout
_MOST_FILES = 100_000
_BATCH_ROWS = 64
_BLOCK_BYTES = 256 << 10
_SHARD_BYTES = 4 << 30
_READ_BYTES = 8 << 20

_Number = Annotated[int, Field(ge=1, le=_LARGEST)]


class Layout(Stored, extra="forbid"):
    """Where every row lies.

    Attributes:
        rows: n.
        shape: of one row: (D,) or (N, D).
        dtype: of its numbers.
        rows_per_block: rows under one checksum; divides `rows_per_batch`.
        rows_per_batch: rows that are written together; divides `rows_per_shard`.
        rows_per_shard: rows in each file but the last.

    Raises:
        ValueError: a number is out of range, or they do not fit each other.
    """

    rows: _Number
    shape: Annotated[tuple[_Number, ...], Field(min_length=1, max_length=2, strict=False)]
    dtype: Literal["float64", "float32", "float16", "bfloat16", "int8"]
    rows_per_block: _Number
    rows_per_batch: _Number
    rows_per_shard: _Number

    @model_validator(mode="after")
    def _fit(self) -> Layout:
        if self.rows_per_batch % self.rows_per_block or self.rows_per_shard % self.rows_per_batch:
            raise ValueError("its blocks do not fit its files")
        if self.rows * self.row_bytes > _LARGEST or self.shards > _MOST_FILES:
            raise ValueError("its size is out of range")
        return self

    @classmethod
    def plan(cls, rows: int, shape: tuple[int, ...], dtype: Any) -> Layout:
        """The layout of new rows: batches of 64 rows, blocks of at most 256 KiB, files of about 4 GiB."""
        row_bytes = math.prod(shape) * _ITEM_BYTES[dtype]
        block = _BATCH_ROWS
        while block > 1 and block * row_bytes > _BLOCK_BYTES:
            block //= 2
        shard = max(_SHARD_BYTES // row_bytes // _BATCH_ROWS, 1) * _BATCH_ROWS
        per = {"rows_per_block": block, "rows_per_batch": _BATCH_ROWS, "rows_per_shard": shard}
        return cls(rows=rows, shape=shape, dtype=dtype, **per)

    @property
    def streams(self) -> dict[str, int]:
        """Bytes of one row in each kind of data file."""
        scales = {"scales": 4 * math.prod(self.shape[:-1])} if self.dtype == "int8" else {}
        return {"features": self.row_bytes, **scales}

    @property
    def row_bytes(self) -> int:
        """Bytes of the numbers of one row."""
        return math.prod(self.shape) * _ITEM_BYTES[self.dtype]  # exact also for numbers that are not trusted yet

    @property
    def blocks(self) -> int:
        """Blocks in all."""
        return -(-self.rows // self.rows_per_block)

    @property
    def batches(self) -> int:
        """Batches in all."""
        return -(-self.rows // self.rows_per_batch)

    @property
    def shards(self) -> int:
        """Data files of a kind."""
        return -(-self.rows // self.rows_per_shard)

    def shard_rows(self, shard: int) -> int:
        """Rows in a data file."""
        return min(self.rows_per_shard, self.rows - shard * self.rows_per_shard)

    def data_sizes(self) -> dict[str, int]:
        """Bytes of every data file, by name."""
        kinds = self.streams.items()
        return {
            data_name(shard, kind): self.shard_rows(shard) * size
            for kind, size in kinds
            for shard in range(self.shards)
        }

    def sizes(self) -> dict[str, int]:
        """Bytes of every binary file, by name."""
        return {ROWS: self.rows * DIGEST_BYTES, CHECKSUMS: self.blocks * DIGEST_BYTES, **self.data_sizes()}

    def block_place(self, block: int) -> tuple[int, int, int]:
        """(number of the data file, first row inside it, rows) of a block; a block never crosses files."""
        first = block * self.rows_per_block
        shard, inside = divmod(first, self.rows_per_shard)
        return shard, inside, min(self.rows_per_block, self.rows - first)


def data_name(shard: int, kind: str = "features") -> str:
    """Name of a data file."""
    return f"{kind}-{shard:05d}.bin"


def checksum(*buffers: Any) -> bytes:
    """SHA-256 of buffers, one after the other: 32 bytes. Processors have instructions for it, unlike for BLAKE2b."""
    digest = hashlib.sha256()
    for buffer in buffers:
        digest.update(buffer)
    return digest.digest()


def block_checksums(layout: Layout, streams: list[NDArray[np.uint8]]) -> bytes:
    """The checksums of a batch's blocks, one after the other: of [b, bytes] for each kind of data file."""
    each, count = layout.rows_per_block, len(streams[0])
    parts = ([values[at : at + each].reshape(-1).data for values in streams] for at in range(0, count, each))
    return b"".join(checksum(*views) for views in parts)


class RowFiles:
    """Finished rows on the disk, every block compared with its checksum whenever it is read.

    Args:
        directory: where they lie.
        layout: where each row lies.
        checksums: of the blocks, one after the other, trusted.
        each: `map`, or what does the same in threads.
    """

    def __init__(self, directory: Path, layout: Layout, checksums: bytes, each: Each = map) -> None:
        self.directory, self.layout, self._checksums, self._each = directory, layout, checksums, each

    def shard(self, number: int, kind: str = "features") -> NDArray[np.uint8]:
        """One data file as a read-only memory map, [rows, bytes of a row] uint8; its blocks are not checked."""
        path = self.directory / data_name(number, kind)
        shape = (self.layout.shard_rows(number), self.layout.streams[kind])
        os.close(open_sized(path, shape[0] * shape[1]))
        with naming(path):
            return np.memmap(path, np.uint8, "r", shape=shape)

    @contextlib.contextmanager
    def opened(self) -> Iterator[dict[str, int]]:
        """Descriptors of the data files, by name.

        Raises:
            ValueError: one is not there, or not as it was written.
        """
        descriptors: dict[str, int] = {}
        try:
            for file, size in self.layout.data_sizes().items():
                descriptors[file] = open_sized(self.directory / file, size)
            with naming(self.directory):
                yield descriptors
        finally:
            for descriptor in descriptors.values():
                os.close(descriptor)

    def read_block(self, block: int, targets: list[NDArray[np.uint8]], descriptors: dict[str, int]) -> None:
        """Read one block and compare it with its checksum.

        Args:
            block: its number.
            targets: [rows, bytes of a row] for each kind of data file, contiguous, filled here.
            descriptors: of the data files, by name.

        Raises:
            ValueError: it is damaged.
        """
        shard, first, _ = self.layout.block_place(block)
        views = [target.reshape(-1).data for target in targets]
        for (kind, size), view in zip(self.layout.streams.items(), views, strict=True):
            read_into(descriptors[data_name(shard, kind)], view, first * size)
        if checksum(*views) != self._checksums[block * DIGEST_BYTES : (block + 1) * DIGEST_BYTES]:
            raise ValueError(f"block {block} of {data_name(shard)} differs from its checksum")

    def read_all(self, whole: list[NDArray[np.uint8]] | None) -> None:
        """Read and check all blocks, into `whole` ([n, bytes] for each kind) when it is given.

        Raises:
            ValueError: one is damaged.
        """
        layout = self.layout
        count = max(1, _READ_BYTES // (layout.rows_per_block * layout.row_bytes))
        with self.opened() as descriptors:

            def read(part: range) -> None:
                for block in part:
                    first, (_, _, rows) = block * layout.rows_per_block, layout.block_place(block)
                    if whole is None:
                        targets = [np.empty((rows, size), np.uint8) for size in layout.streams.values()]
                    else:
                        targets = [values[first : first + rows] for values in whole]
                    self.read_block(block, targets, descriptors)

            for _ in self._each(
                read, [range(at, min(at + count, layout.blocks)) for at in range(0, layout.blocks, count)]
            ):
                pass


def open_sized(path: Path, size: int | None = None) -> int:
    """A descriptor for reading a regular file; links are not followed, so that nothing outside the folder is read.

    Args:
        path: of the file.
        size: that it must have, in bytes.

    Raises:
        ValueError: it is missing, a link, a device, or of another size.
        OSError: it cannot be opened just now.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | NO_LINKS | NEVER_WAIT | NOT_INHERITED)
    except OSError as error:
        if not of_the_file(error):
            raise
        raise ValueError(f"{path.name} cannot be opened ({error.strerror})") from error
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or (size is not None and status.st_size != size):
        os.close(descriptor)
        what = "is not a file" if size is None or not stat.S_ISREG(status.st_mode) else f"is not {size} bytes long"
        raise ValueError(f"{path.name} {what}")
    return descriptor


def read_whole(path: Path, size: int | None = None, limit: int | None = None) -> bytes:
    """All bytes of a regular file.

    Raises:
        ValueError: see `open_sized`; or it is longer than `limit`.
    """
    with naming(path), os.fdopen(open_sized(path, size), "rb") as file:
        data = file.read(-1 if limit is None else limit + 1)
    if (limit is not None and len(data) > limit) or (size is not None and len(data) != size):
        raise ValueError(f"{path.name} has a wrong length")
    return data


def read_into(descriptor: int, view: memoryview, offset: int) -> None:
    """Fill `view` from a file at `offset`.

    Raises:
        ValueError: the file ends before.
    """
    while view:
        count = read_into_at(descriptor, view, offset)
        if count == 0:
            raise ValueError("a data file ended early")
        view, offset = view[count:], offset + count


def write_all(descriptor: int, view: memoryview, offset: int | None) -> None:
    """Write all of `view` at `offset`, or at the end of a file opened for appending."""
    while view:
        if offset is None:
            count = os.write(descriptor, view)
        else:
            count = write_at(descriptor, view, offset)
            offset += count
        view = view[count:]
