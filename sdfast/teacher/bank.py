"""An open bank: features by content digest, every block checked before it is used."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdfast.data.parallel import available_threads, ordered_map
from sdfast.durable import recover_directory
from sdfast.errors import UserError
from sdfast.regular import naming
from sdfast.teacher.fingerprint import check_identity, digest_keys, fingerprint, rows_digest
from sdfast.teacher.format import (
    BUILT,
    CHECKSUMS,
    MANIFEST,
    ROWS,
    Layout,
    Manifest,
    as_digests,
    checksum,
    damaged,
    open_regular,
    read_into,
    read_manifest,
    read_whole,
    shard_name,
)
from sdfast.teacher.storage import decode

_READ_BYTES = 8 << 20


@dataclass(frozen=True)
class Built:
    """When and how a bank was built, for people; nothing depends on it.

    Attributes:
        at: seconds since 1970.
        seconds: that it took.
        device: that the teacher ran on.
    """

    at: float
    seconds: float
    device: str

    @classmethod
    def of(cls, directory: Path) -> Built | None:
        """That of the bank in a directory; None when it cannot be read."""
        try:
            stored = json.loads(read_whole(directory / BUILT, limit=1 << 16))
            at, seconds = float(stored["at"]), float(stored["seconds"])
            return cls(at, seconds, str(stored["device"])[:60]) if math.isfinite(at + seconds) else None
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return None


class Bank:
    """The features of a data set, on the disk.

    Attributes:
        directory: where it lies.
        identity: what the features are of.
        layout: where each row lies.
        digests: [n, 32] uint8, the content digest of each row's image.
        spread: largest standard deviation of a feature over a sample of the rows.
    """

    def __init__(self, directory: Path, manifest: Manifest, digests: NDArray[np.uint8], checksums: bytes) -> None:
        self.directory = directory
        self.identity: dict[str, Any] = manifest.identity
        self.layout: Layout = manifest.layout
        self.spread: float = manifest.spread
        self.digests = digests
        self._checksums = checksums

    def __len__(self) -> int:
        return self.layout.rows

    @property
    def fingerprint(self) -> str:
        """Digest of the identity."""
        return fingerprint(self.identity)

    @property
    def bytes(self) -> int:
        """Bytes of the binary files."""
        return sum(self.layout.sizes().values())

    @property
    def built(self) -> Built | None:
        """The note of the build; None when it cannot be read."""
        return Built.of(self.directory)

    def rows_of(self, digests: NDArray[np.uint8]) -> NDArray[np.int64]:
        """[m, 32] uint8 content digests -> [m] int64 rows of the bank, -1 where it holds none."""
        keys, wanted = digest_keys(self.digests), digest_keys(digests)
        order = np.argsort(keys, kind="stable")
        place = np.minimum(np.searchsorted(keys, wanted, sorter=order), len(keys) - 1)
        rows = order[place]
        return np.where(keys[rows] == wanted, rows, -1).astype(np.int64)

    def shard(self, number: int, stream: str = "features") -> NDArray[np.uint8]:
        """One data file as a read-only memory map, [rows, bytes of a row] uint8; its blocks are not checked."""
        path = self.directory / shard_name(number, stream)
        shape = (self.layout.shard_rows(number), self.layout.streams[stream])
        os.close(open_regular(path, shape[0] * shape[1]))
        with naming(path):
            return np.memmap(path, np.uint8, "r", shape=shape)

    def load(self) -> tuple[Tensor, Tensor | None]:
        """All features in memory, each block compared with its checksum.

        Returns:
            [n, *shape] in the bank's dtype, and for int8 the scales, [n, *shape[:-1]] float32.

        Raises:
            UserError: a block is damaged.
        """
        return decode(self.load_streams(), self.layout)

    def load_streams(self, pinned: bool = False) -> list[Tensor]:
        """All data files in memory, each block compared with its checksum: [n, bytes] uint8 for each stream.

        Args:
            pinned: in pages that a CUDA device copies from by itself.

        Raises:
            UserError: a block is damaged.
        """
        sizes = self.layout.streams.values()
        whole = [torch.empty(len(self), size, dtype=torch.uint8, pin_memory=pinned) for size in sizes]
        self._read_all([values.numpy() for values in whole])
        return whole

    def check(self) -> None:
        """Compare every block with its checksum, a few MiB in memory at a time.

        Raises:
            UserError: a block is damaged.
        """
        self._read_all(None)

    def read_block(self, block: int, targets: list[NDArray[np.uint8]], descriptors: dict[str, int]) -> None:
        """Read one block and compare it with its checksum.

        Args:
            block: its number.
            targets: [rows, bytes of a row] for each stream, contiguous, filled here.
            descriptors: of the data files, by name.

        Raises:
            ValueError: it is damaged.
        """
        shard, first, _ = self.layout.block_place(block)
        views = [target.reshape(-1).data for target in targets]
        for (stream, size), view in zip(self.layout.streams.items(), views, strict=True):
            read_into(descriptors[shard_name(shard, stream)], view, first * size)
        if checksum(*views) != self._checksums[block * 32 : block * 32 + 32]:
            raise ValueError(f"block {block} of {shard_name(shard)} differs from its checksum")

    @contextlib.contextmanager
    def data_files(self) -> Iterator[dict[str, int]]:
        """Descriptors of the data files, by name; a damaged block read inside becomes a UserError."""
        descriptors: dict[str, int] = {}
        try:
            for name, size in self.layout.sizes().items():
                if name not in (ROWS, CHECKSUMS):
                    descriptors[name] = open_regular(self.directory / name, size)
            with naming(self.directory):
                yield descriptors
        except ValueError as error:
            raise damaged(self.directory, error) from error
        finally:
            for descriptor in descriptors.values():
                os.close(descriptor)

    def _read_all(self, whole: list[NDArray[np.uint8]] | None) -> None:
        """Read and check all blocks in threads, into `whole` when it is given."""
        layout = self.layout
        each = max(1, _READ_BYTES // (layout.rows_per_block * layout.row_bytes))
        parts = [range(first, min(first + each, layout.blocks)) for first in range(0, layout.blocks, each)]
        with self.data_files() as descriptors:

            def read(part: range) -> None:
                for block in part:
                    first, (_, _, count) = block * layout.rows_per_block, layout.block_place(block)
                    if whole is None:
                        targets = [np.empty((count, size), np.uint8) for size in layout.streams.values()]
                    else:
                        targets = [values[first : first + count] for values in whole]
                    self.read_block(block, targets, descriptors)

            for _ in ordered_map(read, parts, min(available_threads(), len(parts))):
                pass


def open_bank(directory: Path, wanted: dict[str, Any] | None = None) -> Bank:
    """Open a bank and check everything but the features themselves, which are checked as they are read.

    Args:
        directory: of the bank.
        wanted: the identity that it must have; any when not given.

    Raises:
        UserError: none there, one of something else (the message names the field), or a damaged one.
    """
    directory = Path(directory)
    recover_directory(directory)
    if not (directory / MANIFEST).exists():
        raise UserError(
            f"{directory} holds no teacher bank; run `sdfast cache build --out {directory.parent}` to make it."
        )
    try:
        manifest = read_manifest(directory)
    except ValueError as error:
        raise damaged(directory, error) from error
    if wanted is not None:
        check_identity(manifest.identity, wanted, directory)
    try:
        return _opened(directory, manifest)
    except ValueError as error:
        raise damaged(directory, error) from error


def _opened(directory: Path, manifest: Manifest) -> Bank:
    layout = manifest.layout
    features = manifest.identity.get("features")
    shape = features.get("shape") if isinstance(features, dict) else None
    if manifest.identity.get("dtype") != layout.dtype or shape != list(layout.shape):
        raise ValueError("its layout does not fit its identity")
    for name, size in layout.sizes().items():
        os.close(open_regular(directory / name, size))
    rows = read_whole(directory / ROWS, layout.rows * 32)
    checksums = read_whole(directory / CHECKSUMS, layout.blocks * 32)
    for name, data, digest in ((ROWS, rows, manifest.rows_sha256), (CHECKSUMS, checksums, manifest.checksums_sha256)):
        if hashlib.sha256(data).hexdigest() != digest:
            raise ValueError(f"{name} differs from the manifest")
    digests = as_digests(rows)
    if rows_digest(digests) != manifest.identity.get("rows"):
        raise ValueError(f"{ROWS} is not of the images that the manifest names")
    return Bank(directory, manifest, digests, checksums)
