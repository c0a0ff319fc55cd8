"""An open bank: features by content digest, every block checked before it is used."""

from __future__ import annotations

import hashlib
import json
import os
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

NUMPY_DTYPES: dict[str, Any] = {"float64": np.dtype("<f8"), "float32": np.dtype("<f4")}
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
        try:
            stored = json.loads(read_whole(self.directory / BUILT, limit=1 << 16))
            return Built(float(stored["at"]), float(stored["seconds"]), str(stored["device"])[:60])
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return None

    def rows_of(self, digests: NDArray[np.uint8]) -> NDArray[np.int64]:
        """[m, 32] uint8 content digests -> [m] int64 rows of the bank, -1 where it holds none."""
        keys, wanted = digest_keys(self.digests), digest_keys(digests)
        order = np.argsort(keys, kind="stable")
        place = np.minimum(np.searchsorted(keys, wanted, sorter=order), len(keys) - 1)
        rows = order[place]
        return np.where(keys[rows] == wanted, rows, -1).astype(np.int64)

    def shard(self, number: int) -> NDArray[Any]:
        """One data file as a read-only memory map, [rows, *shape]; its blocks are not checked."""
        layout = self.layout
        path = self.directory / shard_name(number)
        os.close(open_regular(path, layout.sizes()[path.name]))
        shape = (layout.shard_rows(number), *layout.shape)
        return np.memmap(path, NUMPY_DTYPES[layout.dtype], "r", shape=shape)

    def load(self) -> Tensor:
        """All features in memory, [n, *shape], each block compared with its checksum.

        Raises:
            UserError: a block is damaged.
        """
        features = np.empty((len(self), *self.layout.shape), NUMPY_DTYPES[self.layout.dtype])
        self._read_all(features.reshape(-1).view(np.uint8).data)
        return torch.from_numpy(features)

    def check(self) -> None:
        """Compare every block with its checksum, a few MiB in memory at a time.

        Raises:
            UserError: a block is damaged.
        """
        self._read_all(None)

    def _read_all(self, target: memoryview | None) -> None:
        """Read and check all blocks in threads, into `target` when it is given."""
        layout = self.layout
        each = max(1, _READ_BYTES // (layout.rows_per_block * layout.row_bytes))
        parts = [range(first, min(first + each, layout.blocks)) for first in range(0, layout.blocks, each)]
        descriptors: list[int] = []
        try:
            for number in range(layout.shards):
                name = shard_name(number)
                descriptors.append(open_regular(self.directory / name, layout.sizes()[name]))
            for _ in ordered_map(
                lambda part: self._read_part(part, descriptors, target), parts, min(available_threads(), len(parts))
            ):
                pass
        except ValueError as error:
            raise damaged(self.directory, error) from error
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _read_part(self, part: range, descriptors: list[int], target: memoryview | None) -> None:
        layout = self.layout
        block_bytes = layout.rows_per_block * layout.row_bytes
        for block in part:
            shard, offset, length = layout.block_place(block)
            if target is None:
                view = memoryview(bytearray(length))
            else:
                view = target[block * block_bytes :][:length]
            read_into(descriptors[shard], view, offset)
            if checksum(view) != self._checksums[block * 32 : block * 32 + 32]:
                raise ValueError(f"block {block} of {shard_name(shard)} differs from its checksum")


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
        raise UserError(f"{directory} holds no teacher bank; run `sdfast cache build` to make it.")
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
