"""Makes what stands beside the tests importable, and leaves the pretence to machines without a GPU."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def no_gpu() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU, and tests that use it")
