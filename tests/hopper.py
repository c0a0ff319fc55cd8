"""Triton kernels compiled for an H100 that is not there."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch


@pytest.fixture
def an_h100(monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton believes that an H100 is there, for work that only compiles."""
    from triton.backends.compiler import GPUTarget

    class Driver:
        def get_current_target(self) -> GPUTarget:
            return GPUTarget("cuda", 90, 32)

        def get_current_device(self) -> str:
            return "pretended"  # what is compiled for it is never taken for a device's own code

        def get_current_stream(self, device: str) -> int:
            return 0

        def get_active_torch_device(self) -> torch.device:
            return torch.device("cuda", 0)

    import triton

    monkeypatch.setattr(triton.runtime.driver, "_active", Driver())


class Compiling:
    """Stands for a kernel: compiles it where it would be launched."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.compiled: Any = None

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def warm_up(*positional: Any, **named: Any) -> None:
            self.compiled = self.kernel.warmup(*positional, grid=grid, **named)

        return warm_up


def resources(kernel: Any, path: Path) -> tuple[int, int]:
    """Registers of a thread, and bytes of memory it has of its own, which spilled registers would be in."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    if not tool.is_file():
        pytest.skip("this triton brings no cuobjdump")
    path.write_bytes(kernel.asm["cubin"])
    report = subprocess.run([tool, "-res-usage", path], capture_output=True, text=True, check=True).stdout
    (found,) = re.findall(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", report)
    registers, stack, local = map(int, found)
    return registers, stack + local
