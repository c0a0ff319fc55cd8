"""What every test directory shares: tests marked ``gpu`` are skipped where there is no CUDA device."""

from __future__ import annotations

import os

import pytest

os.environ.setdefault("SDFAST_REPORT", "0")  # hundreds of small runs would pay for pages that nobody looks at


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for_gpu = [item for item in items if item.get_closest_marker("gpu") is not None]
    if not for_gpu:
        return
    import torch

    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="needs a CUDA device")
        for item in for_gpu:
            item.add_marker(skip)
