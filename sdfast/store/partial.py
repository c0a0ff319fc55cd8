"""Rows that are being written: what is done survives a kill, what is not sure to be done is done again.

Data first, then their checksums, then a record in a journal, each on the disk before the next. Several processes may
write together, on one file system, each with a journal of its own.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdfast.durable import check_room, fsync_path, put_in_place, read_json, write_bytes, write_json
from sdfast.errors import RunError
from sdfast.portable import NO_LINKS, NOT_INHERITED, flush_data
from sdfast.regular import naming
from sdfast.store.artifact import Each, first_cut
from sdfast.store.rows import (
    CHECKSUMS,
    DIGEST_BYTES,
    ROWS,
    Layout,
    block_checksums,
    checksum,
    data_name,
    read_into,
    write_all,
)

PLAN = "plan.json"
_NUMBER_BYTES = 8
_LONGEST_BUILD = 1e9  # seconds


class Partial:
    """The files of unfinished rows.

    Each process has a journal, a row of records: the number of a batch (8 bytes) and the checksum of that number and
    the checksums of its blocks (32 bytes). A record counts when its data still have these checksums.

    Attributes:
        layout: where each row will lie.
        done: batches that are on the disk or written.
        resumed: whether an earlier build had begun.
        earlier_seconds: that earlier builds worked.
    """

    def __init__(
        self,
        directory: Path,
        identity: str,
        digests: NDArray[np.uint8],
        layout: Layout,
        what: str,
        otherwise: str,
        rank: int = 0,
        done: Iterable[int] = (),
        each: Each = map,
    ) -> None:
        """Continue the part in `directory` when it is of the same identity, else begin anew there.

        Args:
            directory: of the part.
            identity: digest of what decides the rows.
            digests: [n, 32] uint8, of what each row is of.
            layout: of the rows.
            what: they are, for a sentence.
            otherwise: what helps against a full disk, for the end of a sentence.
            rank: of this process; any but 0 joins what rank 0 has begun.
            done: the batches that are done, as rank 0 found them; it looks itself.
            each: `map`, or what does the same in threads.

        Raises:
            RunError: too little space on the disk, or what rank 0 has begun is not there, or of something else.
        """
        self.directory, self.layout, self.rank, self._what, self._each = directory, layout, rank, what, each
        self.done: set[int] = set(done)
        self._fresh: list[bytes] = []
        self._descriptors: dict[str, int] = {}
        self._started = time.monotonic()
        rows = digests.tobytes()
        self._plan = {"identity": identity, "rows": checksum(rows).hex(), "layout": layout.model_dump(mode="json")}
        stored = _stored_plan(directory)
        self.resumed = stored.get("plan") == self._plan and self._sizes_fit()
        if rank and not self.resumed:
            raise RunError(
                f"process {rank} does not find in {directory} what process 0 has begun there; all processes of a build "
                "need the same model, data and settings, and one file system."
            )
        seconds = stored.get("seconds") if self.resumed else None
        self.earlier_seconds = seconds if isinstance(seconds, float) and 0 <= seconds < _LONGEST_BUILD else 0.0
        if not self.resumed:
            self._begin(otherwise)
        if not rank:
            write_bytes(directory / ROWS, rows)
        if not self.resumed:
            write_json(directory / PLAN, {"plan": self._plan, "seconds": 0.0})
        for file in layout.sizes():
            self._descriptors[file] = os.open(directory / file, os.O_RDWR | NO_LINKS | NOT_INHERITED)
        if self.resumed and not rank:
            self.done |= self._agreeing(self._is_done)

    def write(self, batch: int, streams: list[NDArray[np.uint8]]) -> None:
        """Write a batch, [b, bytes] for each kind of data file, and note its blocks' checksums; any thread may."""
        for (descriptor, offset), values in zip(self._places(batch), streams, strict=True):
            write_all(descriptor, values.reshape(-1).data, offset)
        sums = block_checksums(self.layout, streams)
        write_all(self._descriptors[CHECKSUMS], memoryview(sums), self._first_block(batch) * DIGEST_BYTES)
        number = batch.to_bytes(_NUMBER_BYTES, "little")
        self._fresh.append(number + checksum(number + sums))
        self.done.add(batch)

    def commit(self) -> None:
        """Bring what was written to the disk, then say so in the journal."""
        if not self._fresh:
            return
        for descriptor in self._descriptors.values():
            flush_data(descriptor)
        path = self.directory / f"journal-{self.rank:05d}.bin"
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | NO_LINKS, 0o666)
        try:
            write_all(descriptor, memoryview(b"".join(self._fresh)), None)
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
        self.done |= self._agreeing(self._has_its_checksums)
        missing = self.layout.batches - len(self.done)
        if missing:
            raise RunError(
                f"{missing} of {self.layout.batches} batches of {self._what} are not in {self.directory} although "
                "all processes have ended; it has to be one file system. Run the same command again."
            )

    def read_rows(self, rows: NDArray[np.int64]) -> list[NDArray[np.uint8]]:
        """Some rows from the disk: [b, bytes] for each kind of data file."""
        layout = self.layout
        streams = [np.empty((len(rows), size), np.uint8) for size in layout.streams.values()]
        for (kind, size), values in zip(layout.streams.items(), streams, strict=True):
            for target, row in zip(values, rows.tolist(), strict=True):
                shard, inside = divmod(row, layout.rows_per_shard)
                read_into(self._descriptors[data_name(shard, kind)], target.data, inside * size)
        return streams

    def close(self) -> None:
        """Close the files; each once, also when the system refuses it the first time, as a network's disk may."""
        while self._descriptors:
            os.close(self._descriptors.popitem()[1])

    def _begin(self, otherwise: str) -> None:
        if self.directory.is_symlink() or self.directory.is_file():
            self.directory.unlink()
        shutil.rmtree(self.directory, ignore_errors=True)
        sizes = self.layout.sizes()
        check_room(self.directory.parent, sum(sizes.values()), self._what, otherwise)
        self.directory.mkdir()
        for file, size in sizes.items():
            with open(self.directory / file, "xb") as opened:
                opened.truncate(size)
        for file in sizes:
            fsync_path(self.directory / file)

    def _sizes_fit(self) -> bool:
        return first_cut((self.directory / file, size) for file, size in self.layout.sizes().items()) is None

    def _first_block(self, batch: int) -> int:
        return batch * self.layout.rows_per_batch // self.layout.rows_per_block

    def _places(self, batch: int) -> list[tuple[int, int]]:
        """(descriptor, first byte) of a batch in each kind of data file."""
        shard, first, _ = self.layout.block_place(self._first_block(batch))
        return [(self._descriptors[data_name(shard, kind)], first * size) for kind, size in self.layout.streams.items()]

    def _agreeing(self, agrees: Any) -> set[int]:
        """The batches of which a record agrees with what is on the disk; of those that are not known to be done."""
        records = [record for record in self._records() if _batch_of(record) < self.layout.batches]
        records = [record for record in records if _batch_of(record) not in self.done]
        return {_batch_of(record) for record, good in zip(records, self._each(agrees, records), strict=True) if good}

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

    def _has_its_checksums(self, record: bytes) -> bool:
        """Whether a batch's stored checksums are those of its record."""
        return checksum(record[:_NUMBER_BYTES], self._stored_checksums(_batch_of(record))) == record[_NUMBER_BYTES:]

    def _is_done(self, record: bytes) -> bool:
        """Whether a batch's stored checksums are those of its record, and of its data."""
        if not self._has_its_checksums(record):
            return False
        batch = _batch_of(record)
        streams = [np.empty((self._rows_in(batch), size), np.uint8) for size in self.layout.streams.values()]
        for (descriptor, offset), values in zip(self._places(batch), streams, strict=True):
            read_into(descriptor, values.reshape(-1).data, offset)
        return block_checksums(self.layout, streams) == self._stored_checksums(batch)

    def _stored_checksums(self, batch: int) -> bytes:
        stored = bytearray(-(-self._rows_in(batch) // self.layout.rows_per_block) * DIGEST_BYTES)
        read_into(self._descriptors[CHECKSUMS], memoryview(stored), self._first_block(batch) * DIGEST_BYTES)
        return bytes(stored)

    def _rows_in(self, batch: int) -> int:
        return min(self.layout.rows_per_batch, self.layout.rows - batch * self.layout.rows_per_batch)


def publish(part: Path, directory: Path) -> None:
    """Put a finished part, its manifest written, in its place; what was there goes last."""
    for path in (part / PLAN, *part.glob("journal-*.bin"), *part.glob(".staging-*")):  # the last were left by a kill
        path.unlink(missing_ok=True)
    fsync_path(part)
    put_in_place(part, directory)


def _batch_of(record: bytes) -> int:
    return int.from_bytes(record[:_NUMBER_BYTES], "little")


def _stored_plan(directory: Path) -> dict[str, Any]:
    """The JSON object of a part's plan; empty when it is not one, or when anything there is not a regular file."""
    try:
        if directory.is_symlink():
            return {}
        with os.scandir(directory) as entries:
            if not all(entry.is_file(follow_symlinks=False) for entry in entries):
                return {}
        stored = read_json(directory / PLAN)
        return stored if isinstance(stored, dict) else {}
    except (ValueError, RecursionError, OSError):
        return {}
