"""Where a bank is while a stage trains: in the memory of the device, or on the disk, read as it is used."""

from __future__ import annotations

import contextlib
import os
import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sdfast.data.parallel import available_threads
from sdfast.data.waiting import waiting
from sdfast.teacher.bank import Bank
from sdfast.teacher.format import damaged
from sdfast.teacher.storage import decode
from sdfast.teacher.targets import Targets

Residency = Literal["auto", "device", "stream"]
_SHARE = 0.5  # of the free memory that a resident bank may take


def choose_residency(wanted: Residency, size: int, device: torch.device) -> Literal["device", "stream"]:
    """`auto` becomes `device` for a bank of at most half the device's free memory (`size` bytes), else `stream`."""
    if wanted != "auto":
        return wanted
    return "device" if size <= _SHARE * free_memory(device) else "stream"


def free_memory(device: torch.device) -> int:
    """Bytes that can be had on the device now."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    with contextlib.suppress(OSError, ValueError, IndexError), open("/proc/meminfo", encoding="ascii") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


class StreamedBank:
    """A bank on the disk; each block is compared with its checksum whenever it is read.

    The rows of a batch are announced when its masks are drawn and read in threads while the masked branch computes.
    """

    def __init__(self, bank: Bank, bank_rows: Tensor, device: torch.device) -> None:
        """Open the data files.

        Args:
            bank: to read from.
            bank_rows: [m] int64 on the CPU: for each row of the split its row of the bank.
            device: where the targets go.
        """
        self.bank, self.bank_rows, self.device = bank, bank_rows, device
        stack = contextlib.ExitStack()
        self._descriptors = stack.enter_context(bank.data_files())
        self._pool = ThreadPoolExecutor(available_threads(), thread_name_prefix="sdfast-bank")
        stack.callback(self._pool.shutdown, wait=False, cancel_futures=True)
        weakref.finalize(self, stack.close)
        self._announced: tuple[Tensor, _Reading] | None = None

    def announce(self, rows: Tensor) -> None:
        """Begin to read the rows [B] of a batch."""
        self._announced = (rows, self._begin(rows))

    def targets(self, pixels: Tensor, rows: Tensor) -> Targets:
        """See `Teacher.targets`.

        Raises:
            UserError: a block is damaged.
        """
        if self._announced is None or not bool(torch.isin(rows, self._announced[0]).all()):
            self.announce(rows)
        assert self._announced is not None
        announced, reading = self._announced
        try:
            with waiting():
                streams = reading.finish()
        except ValueError as error:
            raise damaged(self.bank.directory, error) from error
        if not torch.equal(announced, rows):
            order = torch.argsort(announced)
            positions = order[torch.searchsorted(announced[order], rows)].numpy()
            streams = [values[positions] for values in streams]
        features, scale = decode(streams, self.bank.layout)
        scale = None if scale is None else scale.to(self.device, non_blocking=True)
        return Targets(features.to(self.device, non_blocking=True), None, scale)

    def _begin(self, rows: Tensor) -> _Reading:
        layout, wanted = self.bank.layout, self.bank_rows[rows].numpy()
        streams = [np.empty((len(wanted), size), np.uint8) for size in layout.streams.values()]
        blocks = wanted // layout.rows_per_block
        pending = []
        for block in np.unique(blocks).tolist():
            places = np.flatnonzero(blocks == block)
            inside = wanted[places] - block * layout.rows_per_block
            pending.append(self._pool.submit(_read, self.bank, self._descriptors, block, inside, places, streams))
        return _Reading(streams, pending)


class _Reading:
    """Rows that are being read: [b, bytes] for each stream."""

    def __init__(self, streams: list[NDArray[np.uint8]], pending: list[Future[None]]) -> None:
        self.streams, self.pending = streams, pending

    def finish(self) -> list[NDArray[np.uint8]]:
        """Wait for all of them."""
        for future in self.pending:
            future.result()
        self.pending = []
        return self.streams


def _read(
    bank: Bank,
    descriptors: dict[str, int],
    block: int,
    inside: NDArray[np.int64],
    places: NDArray[np.intp],
    streams: list[NDArray[np.uint8]],
) -> None:
    """Read one block and put its wanted rows (`inside`) where they belong in the batch (`places`)."""
    count = bank.layout.block_place(block)[2]
    if count == len(places) == 1:  # a large row is a block of its own: no copy
        bank.read_block(block, [target[places[0]] for target in streams], descriptors)
        return
    whole = [np.empty((count, size), np.uint8) for size in bank.layout.streams.values()]
    bank.read_block(block, whole, descriptors)
    for values, target in zip(whole, streams, strict=True):
        target[places] = values[inside]
