"""A bank that is being built: what is done survives a kill, what is not sure to be done is done again."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdfast.durable import fsync_path, read_json, write_bytes, write_json
from sdfast.errors import RunError
from sdfast.teacher.fingerprint import fingerprint
from sdfast.teacher.format import (
    CHECKSUMS,
    DIGEST_BYTES,
    ROWS,
    Layout,
    blocks_in,
    checksum,
    read_into,
    shard_name,
)
from sdfast.teacher.recipe import Recipe
from sdfast.teacher.storage import decode, widen

PLAN, JOURNAL = "plan.json", "journal.bin"
_NUMBER_BYTES = 8


class Partial:
    """The files of an unfinished bank.

    The journal is a row of records, each the number of a batch (8 bytes) and the checksum of that number and the
    checksums of its blocks (32 bytes). A record counts when its data still have these checksums.

    Attributes:
        layout: where each row will lie.
        done: batches that are on the disk or written.
        resumed: whether an earlier build had begun.
        earlier_seconds: that earlier builds worked.
    """

    def __init__(self, directory: Path, recipe: Recipe, layout: Layout) -> None:
        """Continue the part in `directory` when it is of the same recipe, else begin anew there.

        Raises:
            RunError: too little space on the disk.
        """
        self.directory, self.layout = directory, layout
        self.done: set[int] = set()
        self._fresh: list[bytes] = []
        self._descriptors: dict[str, int] = {}
        self._started = time.monotonic()
        rows = np.ascontiguousarray(recipe.digests[recipe.distinct_rows]).tobytes()
        self._plan = {
            "identity": fingerprint(recipe.identity),
            "rows": checksum(rows).hex(),
            "layout": layout.to_json(),
        }
        stored = read_json(directory / PLAN)
        self.resumed = isinstance(stored, dict) and stored.get("plan") == self._plan and self._sizes_fit()
        self.earlier_seconds = 0.0
        if self.resumed and isinstance(stored, dict) and isinstance(stored.get("seconds"), float):
            self.earlier_seconds = stored["seconds"]
        if not self.resumed:
            self._begin()
        write_bytes(directory / ROWS, rows)
        if not self.resumed:
            write_json(directory / PLAN, {"plan": self._plan, "seconds": 0.0})
        for name in layout.sizes():
            self._descriptors[name] = os.open(directory / name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        if self.resumed:
            self._read_journal()

    def write(self, batch: int, streams: list[NDArray[np.uint8]]) -> None:
        """Write a batch, [b, bytes] for each stream of the layout, and note its blocks' checksums."""
        layout, sums = self.layout, b""
        for position, block in enumerate(blocks_in(layout, batch)):
            shard, first, count = layout.block_place(block)
            start = position * layout.rows_per_block
            views = [values[start : start + count].reshape(-1).data for values in streams]
            for (stream, size), view in zip(layout.streams.items(), views, strict=True):
                _write_all(self._descriptors[shard_name(shard, stream)], view, first * size)
            sums += checksum(*views)
        first_block = batch * layout.rows_per_batch // layout.rows_per_block
        _write_all(self._descriptors[CHECKSUMS], memoryview(sums), first_block * DIGEST_BYTES)
        number = batch.to_bytes(_NUMBER_BYTES, "little")
        self._fresh.append(number + checksum(number + sums))
        self.done.add(batch)

    def commit(self) -> None:
        """Bring what was written to the disk, then say so in the journal."""
        if not self._fresh:
            return
        for descriptor in self._descriptors.values():
            os.fdatasync(descriptor)
        descriptor = os.open(self.directory / JOURNAL, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o666)
        try:
            _write_all(descriptor, memoryview(b"".join(self._fresh)), None)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self._fresh = []
        seconds = self.earlier_seconds + time.monotonic() - self._started
        write_json(self.directory / PLAN, {"plan": self._plan, "seconds": seconds})

    def read_rows(self, rows: NDArray[np.int64]) -> Tensor:
        """The numbers of some rows, from the disk: [b, *shape] float64."""
        layout, streams = self.layout, []
        for stream, size in layout.streams.items():
            values = np.empty((len(rows), size), np.uint8)
            for target, row in zip(values, rows.tolist(), strict=True):
                shard, inside = divmod(row, layout.rows_per_shard)
                read_into(self._descriptors[shard_name(shard, stream)], target.data, inside * size)
            streams.append(torch.from_numpy(values))
        return widen(*decode(streams, layout))

    def close(self) -> None:
        """Close the files."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors = {}

    def _begin(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir()
        sizes = self.layout.sizes()
        needed, free = sum(sizes.values()), shutil.disk_usage(self.directory).free
        if needed > free:
            self.directory.rmdir()
            raise RunError(
                f"the teacher bank needs {needed / 1e9:.2f} GB in {self.directory.parent}, where {free / 1e9:.2f} GB "
                "are free; free some space, choose another --out, or train with teacher.mode=live."
            )
        for name, size in sizes.items():
            with open(self.directory / name, "xb") as file:
                file.truncate(size)
        for name in sizes:
            fsync_path(self.directory / name)

    def _sizes_fit(self) -> bool:
        paths = {self.directory / name: size for name, size in self.layout.sizes().items()}
        return all(path.is_file() and path.stat().st_size == size for path, size in paths.items())

    def _read_journal(self) -> None:
        """Find out which batches are done: those whose record and data agree. A cut record at the end is dropped."""
        path = self.directory / JOURNAL
        data = path.read_bytes() if path.is_file() else b""
        size = _NUMBER_BYTES + DIGEST_BYTES
        records = [data[at : at + size] for at in range(0, len(data) - size + 1, size)]
        if len(data) % size:
            write_bytes(path, data[: len(records) * size])  # so that the next record starts at its place
        for record in dict.fromkeys(records):
            batch = int.from_bytes(record[:_NUMBER_BYTES], "little")
            if batch < self.layout.batches and self._is_done(batch, record):
                self.done.add(batch)

    def _is_done(self, batch: int, record: bytes) -> bool:
        layout, sums = self.layout, b""
        for block in blocks_in(layout, batch):
            shard, first, count = layout.block_place(block)
            views = []
            for stream, size in layout.streams.items():
                views.append(memoryview(bytearray(count * size)))
                read_into(self._descriptors[shard_name(shard, stream)], views[-1], first * size)
            sums += checksum(*views)
        stored = memoryview(bytearray(len(sums)))
        first_block = batch * layout.rows_per_batch // layout.rows_per_block
        read_into(self._descriptors[CHECKSUMS], stored, first_block * DIGEST_BYTES)
        return stored == sums and checksum(record[:_NUMBER_BYTES] + sums) == record[_NUMBER_BYTES:]


def _write_all(descriptor: int, view: memoryview, offset: int | None) -> None:
    """Write all of `view` at `offset`, or at the end of a file opened for appending."""
    while view:
        if offset is None:
            count = os.write(descriptor, view)
        else:
            count = os.pwrite(descriptor, view, offset)
            offset += count
        view = view[count:]
