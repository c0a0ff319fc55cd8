"""Freed pages are kept inside the block and given back after it."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest
import torch

from sdfast.engine.machine import freed_pages_kept


def resident_megabytes() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="not glibc")
def test_freed_pages_stay_and_then_go() -> None:
    before = resident_megabytes()
    with freed_pages_kept() as taken:
        assert taken
        block = torch.ones(50_000_000)  # 200 MB
        del block
        kept = resident_megabytes() - before
    assert kept > 150
    assert resident_megabytes() - before < 100
