"""A bank that does not lie on the device: the rows of a batch are brought there in threads, a step before their use."""

from __future__ import annotations

import contextlib
import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdfast.data.parallel import waiting
from sdfast.portable import expect
from sdfast.store.rows import data_name
from sdfast.teacher.bank import Bank
from sdfast.teacher.storage import decode
from sdfast.teacher.targets import Targets

_READERS = 8  # threads; most of them wait for the disk
_TASKS = 16  # that a batch's rows are shared out to
_HELD = 2  # batches: the one that is used and the one that is fetched


class DiskSource:
    """The files of a bank; each block is compared with its checksum whenever it is read."""

    def __init__(self, bank: Bank) -> None:
        """Open the data files."""
        self.bank, self.layout = bank, bank.layout
        stack = contextlib.ExitStack()
        self._descriptors = stack.enter_context(bank.opened())
        weakref.finalize(self, stack.close)

    def tasks(self, wanted: NDArray[np.int64]) -> list[NDArray[np.intp]]:
        """Share out the places of a batch: which of them (numbers below len(wanted)) each thread fills.

        They go by the order on the disk, and no block is in two tasks.
        """
        order = np.argsort(wanted, kind="stable")
        if not len(order):
            return []
        blocks = wanted[order] // self.layout.rows_per_block
        starts = np.flatnonzero(np.diff(blocks, prepend=-1))
        cuts = starts[np.linspace(0, len(starts), _TASKS, endpoint=False).astype(np.intp)]
        return [part for part in np.split(order, np.unique(cuts)) if len(part)]

    def read(self, wanted: NDArray[np.int64]) -> list[Tensor]:
        """The rows `wanted` [b]: [b, bytes] uint8 for each stream, in memory of their own."""
        streams = [torch.empty(len(wanted), size, dtype=torch.uint8) for size in self.layout.streams.values()]
        for places in self.tasks(wanted):
            self.fill(wanted, places, streams)
        return streams

    def fill(self, wanted: NDArray[np.int64], places: NDArray[np.intp], streams: list[Tensor]) -> None:
        """Bring the rows `wanted[places]` to `places` of [B, bytes] uint8 for each stream of the layout.

        Raises:
            UserError: a block is damaged.
        """
        layout, targets = self.layout, [stream.numpy() for stream in streams]
        blocks, starts = np.unique(wanted[places] // layout.rows_per_block, return_index=True)
        self._expect(blocks.tolist())
        scratch = [np.empty((layout.rows_per_block, size), np.uint8) for size in layout.streams.values()]
        with self.bank.explained():
            for block, part in zip(blocks.tolist(), np.split(places, starts[1:]), strict=True):
                count = layout.block_place(block)[2]
                if count == len(part) == 1:  # a large row is a block of its own: no copy
                    self.bank.read_block(block, [target[part[0]] for target in targets], self._descriptors)
                    continue
                whole = [values[:count] for values in scratch]
                self.bank.read_block(block, whole, self._descriptors)
                for values, target in zip(whole, targets, strict=True):
                    target[part] = values[wanted[part] - block * layout.rows_per_block]

    def _expect(self, blocks: list[int]) -> None:
        """Let the system begin with all blocks of a task at once; by itself it reads a block in several turns."""
        for block in blocks:
            shard, first, count = self.layout.block_place(block)
            for stream, size in self.layout.streams.items():
                descriptor = self._descriptors[data_name(shard, stream)]
                expect(descriptor, first * size, count * size)


class MemorySource:
    """A whole bank in host memory, every block checked when it is loaded."""

    def __init__(self, bank: Bank, pinned: bool) -> None:
        """Load it; into pages that a device can copy from when `pinned`."""
        self.layout = bank.layout
        self._streams = bank.load_streams(pinned)

    def tasks(self, wanted: NDArray[np.int64]) -> list[NDArray[np.intp]]:
        """Share out the places of a batch (see `DiskSource.tasks`): consecutive ones to each thread."""
        return [part for part in np.array_split(np.arange(len(wanted)), _READERS) if len(part)]

    def fill(self, wanted: NDArray[np.int64], places: NDArray[np.intp], streams: list[Tensor]) -> None:
        """Bring the rows `wanted[places]` to `places`, which are consecutive, of [B, bytes] uint8 for each stream."""
        rows = torch.from_numpy(wanted[places])
        for values, target in zip(self._streams, streams, strict=True):
            torch.index_select(values, 0, rows, out=target[int(places[0]) : int(places[-1]) + 1])


class _Delivery(NamedTuple):
    """A batch on the device: [B, bytes] uint8 for each stream, and on CUDA when its copy is done."""

    streams: list[Tensor]
    copied: torch.cuda.Event | None


class _Batch:
    """A batch that is fetched into buffers of its own, which a later batch uses again."""

    def __init__(self) -> None:
        self.rows, self.epoch = torch.empty(0, dtype=torch.int64), -1
        self.buffers: list[Tensor] = []
        self.delivery: Future[_Delivery] | None = None


class FetchedBank:
    """Targets that are fetched while the step before computes; two batches are in memory, in buffers that are kept.

    The tensors of `targets` hold good until the second announcement from then, as a step needs them.
    """

    def __init__(self, source: DiskSource | MemorySource, bank_rows: Tensor, device: torch.device) -> None:
        """Set up the threads.

        Args:
            source: of the rows.
            bank_rows: [K, m] int64 on the CPU: for each view and row of the split its row of the bank.
            device: where the targets go.
        """
        self.source, self.bank_rows, self.device = source, bank_rows, device
        self._batches = [_Batch() for _ in range(_HELD)]  # the oldest first
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._readers = ThreadPoolExecutor(_READERS, thread_name_prefix="sdfast-bank")
        self._delivering = ThreadPoolExecutor(1, thread_name_prefix="sdfast-bank-delivery")
        for pool in (self._readers, self._delivering):
            weakref.finalize(self, pool.shutdown, wait=False, cancel_futures=True)

    static = False  # see `Teacher.static`: every batch comes in tensors of its own

    def announce(self, rows: Tensor, epoch: int) -> None:
        """Begin to fetch the rows [B] of a batch; nothing to do when it has been announced."""
        if any(held.epoch == epoch and torch.equal(held.rows, rows) for held in self._batches):
            return
        batch = self._batches.pop(0)
        before = None
        if batch.delivery is not None:
            # What went wrong with a batch that nobody asked for is met again when it is asked for.
            before = None if batch.delivery.exception() else batch.delivery.result().copied
        if not batch.buffers or len(batch.buffers[0]) < len(rows):
            pinned, sizes = self._stream is not None, self.source.layout.streams.values()
            batch.buffers = [torch.empty(len(rows), size, dtype=torch.uint8, pin_memory=pinned) for size in sizes]
            before = None
        batch.rows, batch.epoch = rows, epoch
        wanted = self.bank_rows[epoch % len(self.bank_rows), rows].numpy()
        streams = [buffer[: len(rows)] for buffer in batch.buffers]

        def fill(places: NDArray[np.intp]) -> None:
            if before is not None:
                before.synchronize()  # until then the buffers are copied from
            self.source.fill(wanted, places, streams)

        pending = [self._readers.submit(fill, places) for places in self.source.tasks(wanted)]
        batch.delivery = self._delivering.submit(_deliver, pending, streams, self.device, self._stream)
        self._batches.append(batch)

    def targets(self, pixels: Tensor, rows: Tensor, epoch: int) -> Targets:
        """The targets of some rows of an announced batch, or of one that is fetched now.

        Raises:
            UserError: a block is damaged.
        """
        batch = self._holding(rows, epoch)
        if batch is None:
            self.announce(rows, epoch)
            batch = self._batches[-1]
        assert batch.delivery is not None
        with waiting():
            streams, copied = batch.delivery.result()
        if copied is not None:
            now = torch.cuda.current_stream(self.device)
            now.wait_event(copied)
            for stream in streams:
                stream.record_stream(now)
        first, last = _positions(batch.rows, rows), None
        if len(rows) and torch.equal(first, torch.arange(int(first[0]), int(first[0]) + len(rows))):
            last = int(first[0]) + len(rows)
        if last is not None:
            streams = [stream[last - len(rows) : last] for stream in streams]
        features, scale = decode(streams, self.source.layout)
        return Targets(features, None if last is not None else first.to(self.device, non_blocking=True), scale)

    def _holding(self, rows: Tensor, epoch: int) -> _Batch | None:
        for held in reversed(self._batches):
            if held.epoch == epoch and bool(torch.isin(rows, held.rows).all()):
                return held
        return None


def _deliver(
    pending: list[Future[None]], streams: list[Tensor], device: torch.device, stream: torch.cuda.Stream | None
) -> _Delivery:
    """Wait for the rows, and on CUDA copy them on a stream of their own."""
    failures = [failure for failure in (future.exception() for future in pending) if failure is not None]
    if failures:  # all threads have let go of the buffers by now
        raise failures[0]
    if stream is None:
        return _Delivery(streams, None)
    with torch.cuda.stream(stream):
        there = [values.to(device, non_blocking=True) for values in streams]
        return _Delivery(there, stream.record_event())


def _positions(announced: Tensor, rows: Tensor) -> Tensor:
    """[b] int64: where each of `rows` is among the announced ones."""
    order = torch.argsort(announced, stable=True)
    return order[torch.searchsorted(announced[order], rows)]
