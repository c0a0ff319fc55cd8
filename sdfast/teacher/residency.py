"""Where a bank is while a stage trains: in the memory of the device, in the host's, or on the disk."""

from __future__ import annotations

from typing import Literal

import torch

from sdfast.portable import free_memory_bytes
from sdfast.teacher.bank import Bank
from sdfast.teacher.fetch import DiskSource, FetchedBank, MemorySource
from sdfast.teacher.targets import ResidentBank, Teacher

Residency = Literal["auto", "device", "host", "stream"]
Place = Literal["device", "host", "stream"]
_SHARE = 0.5  # of the free memory that a bank may take


def choose_residency(wanted: Residency, size: int, device: torch.device) -> Place:
    """Where a bank of `size` bytes goes.

    `auto` is the device's memory when the bank takes at most half of what is free there, else the host's by the same
    rule, else the disk. On a CPU the device's memory is the host's, and `host` means `device`.
    """
    if wanted == "auto":
        if size <= _SHARE * free_memory(device):
            return "device"
        wanted = "host" if device.type != "cpu" and size <= _SHARE * free_memory(torch.device("cpu")) else "stream"
    return "device" if wanted == "host" and device.type == "cpu" else wanted


def free_memory(device: torch.device) -> int:
    """Bytes that can be had on the device now."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return free_memory_bytes()


def describe_place(place: Place, device: torch.device) -> str:
    """Where a bank is, in words for the log."""
    return {
        "device": f"in the memory of {device}",
        "host": "in pinned host memory, each batch's rows copied ahead of their use",
        "stream": "read from the disk ahead of each step",
    }[place]


def place_bank(bank: Bank, bank_rows: torch.Tensor, place: Place, device: torch.device) -> Teacher:
    """Bring a bank to its place.

    Args:
        bank: to read.
        bank_rows: [K, m] int64 on the CPU: for each view and row of the split its row of the bank, -1 where none is.
        place: see `choose_residency`.
        device: where the targets go.

    Raises:
        UserError: a block is damaged; with `stream` this is found when it is read.
    """
    if place == "stream":
        return FetchedBank(DiskSource(bank), bank_rows, device)
    if place == "host":
        return FetchedBank(MemorySource(bank, pinned=device.type == "cuda"), bank_rows, device)
    features, scale = bank.load()
    return ResidentBank(features.to(device), None if scale is None else scale.to(device), bank_rows)
