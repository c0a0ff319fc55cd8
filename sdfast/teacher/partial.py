"""A bank that is being built: what is done survives a kill, what is not sure to be done is done again."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdfast.data.parallel import available_threads, ordered_map
from sdfast.durable import check_room, fsync_path, read_json, write_bytes, write_json
from sdfast.errors import RunError
from sdfast.regular import naming
from sdfast.teacher.fingerprint import fingerprint
from sdfast.teacher.format import (
    CHECKSUMS,
    DIGEST_BYTES,
    ROWS,
    Layout,
    checksum,
    read_into,
    shard_name,
)
from sdfast.teacher.recipe import BankRecipe
from sdfast.teacher.storage import decode, widen

PLAN = "plan.json"
_NUMBER_BYTES = 8
_LONGEST_BUILD = 1e9  # seconds


class Partial:
    """The files of an unfinished bank.

    Each process has a journal, a row of records: the number of a batch (8 bytes) and the checksum of that number and
    the checksums of its blocks (32 bytes). A record counts when its data still have these checksums.

    Attributes:
        layout: where each row will lie.
        done: batches that are on the disk or written.
        resumed: whether an earlier build had begun.
        earlier_seconds: that earlier builds worked.
    """

    def __init__(
        self, directory: Path, recipe: BankRecipe, layout: Layout, rank: int = 0, done: Iterable[int] = ()
    ) -> None:
        """Continue the part in `directory` when it is of the same recipe, else begin anew there.

        Args:
            directory: of the part.
            recipe: of the bank.
            layout: of the bank.
            rank: of this process; any but 0 joins what rank 0 has begun.
            done: the batches that are done, as rank 0 found them; it looks itself.

        Raises:
            RunError: too little space on the disk, or what rank 0 has begun is not there, or of something else.
        """
        self.directory, self.layout, self.rank = directory, layout, rank
        self.done: set[int] = set(done)
        self._fresh: list[bytes] = []
        self._descriptors: dict[str, int] = {}
        self._started = time.monotonic()
        rows = recipe.entry_digests.tobytes()
        self._plan = {
            "identity": fingerprint(recipe.identity),
            "rows": checksum(rows).hex(),
            "layout": layout.to_json(),
        }
        stored = _stored_plan(directory)
        self.resumed = isinstance(stored, dict) and stored.get("plan") == self._plan and self._sizes_fit()
        if rank and not self.resumed:
            raise RunError(
                f"process {rank} does not find in {directory} what process 0 has begun there; all processes of a build "
                "need the same model, data and settings, and one file system."
            )
        self.earlier_seconds = 0.0
        if self.resumed and isinstance(stored, dict) and isinstance(seconds := stored.get("seconds"), float):
            self.earlier_seconds = seconds if 0 <= seconds < _LONGEST_BUILD else 0.0
        if not self.resumed:
            self._begin()
        if not rank:
            write_bytes(directory / ROWS, rows)
        if not self.resumed:
            write_json(directory / PLAN, {"plan": self._plan, "seconds": 0.0})
        for name in layout.sizes():
            self._descriptors[name] = os.open(directory / name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        if self.resumed and not rank:
            self._read_journals()

    def write(self, batch: int, streams: list[NDArray[np.uint8]]) -> None:
        """Write a batch, [b, bytes] for each stream of the layout, and note its blocks' checksums; any thread may."""
        layout, first_block = self.layout, batch * self.layout.rows_per_batch // self.layout.rows_per_block
        shard, first, _ = layout.block_place(first_block)
        for (stream, size), values in zip(layout.streams.items(), streams, strict=True):
            _write_all(self._descriptors[shard_name(shard, stream)], values.reshape(-1).data, first * size)
        sums = block_checksums(layout, streams)
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
        path = self.directory / f"journal-{self.rank:05d}.bin"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o666)
        try:
            _write_all(descriptor, memoryview(b"".join(self._fresh)), None)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        self._fresh = []
        if not self.rank:
            seconds = self.earlier_seconds + time.monotonic() - self._started
            write_json(self.directory / PLAN, {"plan": self._plan, "seconds": seconds})

    def take_in_others(self) -> None:
        """Read in the journals what other processes have done; their data are not read again.

        Raises:
            RunError: not all batches are done.
        """
        for record in self._records():
            batch = int.from_bytes(record[:_NUMBER_BYTES], "little")
            if batch < self.layout.batches and batch not in self.done and self._is_done(record, read_data=False):
                self.done.add(batch)
        missing = self.layout.batches - len(self.done)
        if missing:
            raise RunError(
                f"{missing} of {self.layout.batches} batches of the teacher bank are not in {self.directory} although "
                "all processes have ended; it has to be one file system. Run the same command again."
            )

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
        """Close the files; each once, also when the system refuses it the first time, as a network's disk may."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def _begin(self) -> None:
        if self.directory.is_symlink() or self.directory.is_file():
            self.directory.unlink()
        shutil.rmtree(self.directory, ignore_errors=True)
        sizes = self.layout.sizes()
        check_room(self.directory.parent, sum(sizes.values()), "the teacher bank", "train with teacher.mode=live")
        self.directory.mkdir()
        for name, size in sizes.items():
            with open(self.directory / name, "xb") as file:
                file.truncate(size)
        for name in sizes:
            fsync_path(self.directory / name)

    def _sizes_fit(self) -> bool:
        paths = {self.directory / name: size for name, size in self.layout.sizes().items()}
        return all(path.is_file() and path.stat().st_size == size for path, size in paths.items())

    def _read_journals(self) -> None:
        """Find out which batches are done: those whose record and data agree."""
        records = [r for r in self._records() if int.from_bytes(r[:_NUMBER_BYTES], "little") < self.layout.batches]
        for record, good in zip(records, ordered_map(self._is_done, records, available_threads()), strict=True):
            if good:
                self.done.add(int.from_bytes(record[:_NUMBER_BYTES], "little"))

    def _records(self) -> list[bytes]:
        """The different records of all journals. One that was cut at the end is dropped; the next takes its place."""
        found: dict[bytes, None] = {}
        size = _NUMBER_BYTES + DIGEST_BYTES
        for path in sorted(self.directory.glob("journal-*.bin")):
            with naming(path):
                data = path.read_bytes()
            whole = len(data) // size * size
            if len(data) > whole:
                write_bytes(path, data[:whole])
            found |= dict.fromkeys(data[at : at + size] for at in range(0, whole, size))
        return list(found)

    def _is_done(self, record: bytes, read_data: bool = True) -> bool:
        """Whether a batch's stored checksums are those of its record, and of its data."""
        layout, batch = self.layout, int.from_bytes(record[:_NUMBER_BYTES], "little")
        first_block = batch * layout.rows_per_batch // layout.rows_per_block
        shard, first, _ = layout.block_place(first_block)
        count = min(layout.rows_per_batch, layout.rows - batch * layout.rows_per_batch)
        stored = bytearray(-(-count // layout.rows_per_block) * DIGEST_BYTES)
        read_into(self._descriptors[CHECKSUMS], memoryview(stored), first_block * DIGEST_BYTES)
        if checksum(record[:_NUMBER_BYTES], stored) != record[_NUMBER_BYTES:]:
            return False
        if not read_data:
            return True
        streams = [np.empty((count, size), np.uint8) for size in layout.streams.values()]
        for (stream, size), values in zip(layout.streams.items(), streams, strict=True):
            read_into(self._descriptors[shard_name(shard, stream)], values.reshape(-1).data, first * size)
        return block_checksums(layout, streams) == stored


def _stored_plan(directory: Path) -> Any:
    """The JSON value of a part's plan; None when it is not one, or when anything there is not a regular file."""
    try:
        if directory.is_symlink():
            return None
        with os.scandir(directory) as entries:
            if not all(entry.is_file(follow_symlinks=False) for entry in entries):
                return None
        return read_json(directory / PLAN)
    except (ValueError, RecursionError, OSError):
        return None


def block_checksums(layout: Layout, streams: list[NDArray[np.uint8]]) -> bytes:
    """The checksums of a batch's blocks, one after the other; streams as `Partial.write` takes them."""
    each, count = layout.rows_per_block, len(streams[0])
    parts = ([values[at : at + each].reshape(-1).data for values in streams] for at in range(0, count, each))
    return b"".join(checksum(*views) for views in parts)


def _write_all(descriptor: int, view: memoryview, offset: int | None) -> None:
    """Write all of `view` at `offset`, or at the end of a file opened for appending."""
    while view:
        if offset is None:
            count = os.write(descriptor, view)
        else:
            count = os.pwrite(descriptor, view, offset)
            offset += count
        view = view[count:]
