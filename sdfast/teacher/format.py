"""How a bank lies on the disk: sizes that follow from a few numbers, checksums of blocks, and a manifest written last.

A bank is a directory:

* `manifest.json`: `{"sha256": ..., "manifest": {...}}`, the digest being that of the inner value in canonical form;
* `rows.bin`: [n, 32] uint8, the content digest of each row's image (as in the pack);
* `checksums.bin`: [blocks, 32] uint8, SHA-256 of each block of features;
* `features-00000.bin`, ...: the features, little-endian, row after row, `rows_per_shard` rows in each file;
* `scales-00000.bin`, ...: for int8, the float32 scale of each token, in the same order;
* `built.json`: when and how long it was built, for people; nothing depends on it.

No file name, size or offset is read from the manifest: all follow from the number of rows, their shape and dtype, and
are compared with the files that are there. Nothing is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdfast.durable import sha256_json
from sdfast.errors import UserError
from sdfast.regular import naming, of_the_file

FORMAT = 2  # 1 had BLAKE2b-256 checksums
MANIFEST, ROWS, CHECKSUMS, BUILT = "manifest.json", "rows.bin", "checksums.bin", "built.json"
DIGEST_BYTES = 32
ITEM_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "int8": 1}

_MANIFEST_LIMIT = 1 << 20  # bytes; a real one has about two thousand
_LARGEST = 1 << 48  # of any number in a manifest
_BATCH_ROWS = 64
_BLOCK_BYTES = 256 << 10
_SHARD_BYTES = 4 << 30


class WrongFormat(ValueError):
    """A whole manifest of another version of the format."""


@dataclass(frozen=True)
class Layout:
    """Where every row lies.

    Attributes:
        rows: n.
        shape: of one row: (D,) or (N, D).
        dtype: one of `ITEM_BYTES`.
        rows_per_block: rows under one checksum; divides `rows_per_batch`.
        rows_per_batch: rows that went through the teacher together; divides `rows_per_shard`.
        rows_per_shard: rows in each file but the last.
    """

    rows: int
    shape: tuple[int, ...]
    dtype: str
    rows_per_block: int
    rows_per_batch: int
    rows_per_shard: int

    @classmethod
    def plan(cls, rows: int, shape: tuple[int, ...], dtype: str) -> Layout:
        """The layout of a new bank: batches of 64 rows, blocks of at most 256 KiB, files of about 4 GiB."""
        row_bytes = math.prod(shape) * ITEM_BYTES[dtype]
        block = _BATCH_ROWS
        while block > 1 and block * row_bytes > _BLOCK_BYTES:
            block //= 2
        shard = max(_SHARD_BYTES // row_bytes // _BATCH_ROWS, 1) * _BATCH_ROWS
        return cls(rows, shape, dtype, block, _BATCH_ROWS, shard)

    @property
    def streams(self) -> dict[str, int]:
        """Bytes of one row in each kind of data file."""
        scales = {"scales": 4 * math.prod(self.shape[:-1])} if self.dtype == "int8" else {}
        return {"features": self.row_bytes, **scales}

    @property
    def row_bytes(self) -> int:
        """Bytes of the features of one row."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]  # exact also for numbers that are not trusted yet

    @property
    def blocks(self) -> int:
        """Blocks in all."""
        return -(-self.rows // self.rows_per_block)

    @property
    def batches(self) -> int:
        """Batches of the build."""
        return -(-self.rows // self.rows_per_batch)

    @property
    def shards(self) -> int:
        """Data files."""
        return -(-self.rows // self.rows_per_shard)

    def shard_rows(self, shard: int) -> int:
        """Rows in a data file."""
        return min(self.rows_per_shard, self.rows - shard * self.rows_per_shard)

    def sizes(self) -> dict[str, int]:
        """Bytes of every binary file, by name."""
        files = {ROWS: self.rows * DIGEST_BYTES, CHECKSUMS: self.blocks * DIGEST_BYTES}
        for stream, size in self.streams.items():
            files |= {shard_name(shard, stream): self.shard_rows(shard) * size for shard in range(self.shards)}
        return files

    def block_place(self, block: int) -> tuple[int, int, int]:
        """(number of the data file, first row inside it, rows) of a block; a block never crosses files."""
        first = block * self.rows_per_block
        shard, inside = divmod(first, self.rows_per_shard)
        return shard, inside, min(self.rows_per_block, self.rows - first)

    def to_json(self) -> dict[str, Any]:
        """As a JSON value."""
        return {
            "rows": self.rows,
            "shape": list(self.shape),
            "dtype": self.dtype,
            "rows_per_block": self.rows_per_block,
            "rows_per_batch": self.rows_per_batch,
            "rows_per_shard": self.rows_per_shard,
        }

    @classmethod
    def from_json(cls, value: Any) -> Layout:
        """The layout that `to_json` described, every number checked.

        Raises:
            ValueError: what does not fit.
        """
        if not isinstance(value, dict) or value.keys() != cls(0, (), "float32", 1, 1, 1).to_json().keys():
            raise ValueError("its layout is not one")
        shape, dtype = value["shape"], value["dtype"]
        if not isinstance(shape, list) or len(shape) not in (1, 2) or not isinstance(dtype, str):
            raise ValueError("its shape is not one")
        if dtype not in ITEM_BYTES:
            raise ValueError(f"its dtype {dtype[:20]!r} is not known")
        names = ("rows", "rows_per_block", "rows_per_batch", "rows_per_shard")
        for number in (*shape, *(value[name] for name in names)):
            if type(number) is not int or not 1 <= number <= _LARGEST:
                raise ValueError("a number of its layout is out of range")
        layout = cls(value["rows"], tuple(shape), dtype, *(value[name] for name in names[1:]))
        if layout.rows_per_batch % layout.rows_per_block or layout.rows_per_shard % layout.rows_per_batch:
            raise ValueError("its blocks do not fit its files")
        if layout.rows * layout.row_bytes > _LARGEST or layout.shards > 100_000:
            raise ValueError("its size is out of range")
        return layout


@dataclass(frozen=True)
class Manifest:
    """What `manifest.json` holds.

    Attributes:
        identity: what the features are of (see `sdfast.teacher.fingerprint`).
        layout: where they lie.
        rows_sha256, checksums_sha256: of `rows.bin` and `checksums.bin`.
        spread: largest standard deviation of a feature over a sample of the rows.
    """

    identity: dict[str, Any]
    layout: Layout
    rows_sha256: str
    checksums_sha256: str
    spread: float

    def to_json(self) -> dict[str, Any]:
        """As the JSON value that is written."""
        inner = {
            "format": FORMAT,
            "identity": self.identity,
            "layout": self.layout.to_json(),
            "rows_sha256": self.rows_sha256,
            "checksums_sha256": self.checksums_sha256,
            "spread": self.spread,
        }
        return {"sha256": sha256_json(inner), "manifest": inner}

    @classmethod
    def from_json(cls, value: Any) -> Manifest:
        """The manifest in a value that is not trusted.

        Raises:
            ValueError: what does not fit.
        """
        if not isinstance(value, dict) or value.keys() != {"sha256", "manifest"}:
            raise ValueError("its manifest is not one")
        inner = value["manifest"]
        if not isinstance(inner, dict) or sha256_json(inner) != value["sha256"]:
            raise ValueError("its manifest differs from the manifest's own digest")
        if type(inner.get("format")) is not int or inner["format"] != FORMAT:
            raise WrongFormat(f"is of format {str(inner.get('format'))[:20]}, and this version reads format {FORMAT}")
        names = {"format", "identity", "layout", "rows_sha256", "checksums_sha256", "spread"}
        if inner.keys() != names or not _has_form(inner["identity"], _IDENTITY_FORM):
            raise ValueError("its manifest is not one")
        if type(inner["spread"]) not in (int, float):
            raise ValueError("its spread is not a number")
        return cls(
            inner["identity"],
            Layout.from_json(inner["layout"]),
            inner["rows_sha256"],
            inner["checksums_sha256"],
            inner["spread"],
        )


def _has_form(value: Any, form: Any) -> bool:
    """Whether a JSON value has (at least) the keys and kinds of `form`."""
    if isinstance(form, dict):
        return isinstance(value, dict) and all(_has_form(value.get(key), part) for key, part in form.items())
    return isinstance(value, form)


_IDENTITY_FORM = {
    "teacher": {"weights": str, "config": {}},
    "rows": str,
    "transform": {},
    "augment": {"kind": str},
    "features": {"tokens": str, "shape": list},
    "dtype": str,
}


def shard_name(shard: int, stream: str = "features") -> str:
    """Name of a data file."""
    return f"{stream}-{shard:05d}.bin"


def checksum(*buffers: Any) -> bytes:
    """SHA-256 of buffers, one after the other: 32 bytes. Processors have instructions for it, unlike for BLAKE2b."""
    digest = hashlib.sha256()
    for buffer in buffers:
        digest.update(buffer)
    return digest.digest()


def open_regular(path: Path, size: int | None = None) -> int:
    """A descriptor for reading a regular file; links are not followed, so that nothing outside the folder is read.

    Args:
        path: of the file.
        size: that it must have, in bytes.

    Raises:
        ValueError: it is missing, a link, a device, or of another size.
        OSError: it cannot be opened just now.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
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
        ValueError: see `open_regular`; or it is longer than `limit`.
    """
    with naming(path), os.fdopen(open_regular(path, size), "rb") as file:
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
        count = os.preadv(descriptor, [view], offset)
        if count == 0:
            raise ValueError("a data file ended early")
        view, offset = view[count:], offset + count


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a bank.

    Raises:
        ValueError: none, or not a valid one; the message says what.
    """
    text = read_whole(directory / MANIFEST, limit=_MANIFEST_LIMIT)
    try:
        value = json.loads(text)
        return Manifest.from_json(value)
    except (RecursionError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError("its manifest is not whole JSON") from error


def damaged(directory: Path, reason: ValueError) -> UserError:
    """The error for a bank that cannot be used as it is."""
    what = str(reason) if isinstance(reason, WrongFormat) else f"is damaged: {reason}"
    return UserError(
        f"the teacher bank {directory} {what}; delete it, or run `sdfast cache build --out {directory.parent} "
        "--rebuild`, to build it anew."
    )


def as_digests(data: bytes) -> NDArray[np.uint8]:
    """[n, 32] uint8."""
    return np.frombuffer(data, np.uint8).reshape(-1, DIGEST_BYTES)
