"""What every part is given: the device, the time it has, what the environment measured."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch


@dataclass
class Context:
    """A part's circumstances.

    Attributes:
        device: cuda or cpu.
        quick: every part tiny, and nothing compiled.
        seconds: what the part may take; it starts nothing new when that is spent.
        folder: to write in.
        environment: the first part's result; empty in that part.
    """

    device: str
    quick: bool
    seconds: float
    folder: Path = Path()
    environment: dict[str, Any] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    def left(self) -> float:
        """Seconds of the part's time that are left."""
        return self.seconds - (time.monotonic() - self.started)

    def attempt(self, function: Callable[..., Any], *args: Any, needs: float = 0.0) -> Any:
        """`function(*args)`; or what went wrong, as {"error": text}; or that its time was not left."""
        if self.left() < needs:
            return {"error": f"not reached: less than {needs:.0f} s of the part's time were left"}
        try:
            return function(*args)
        except torch.OutOfMemoryError:
            return {"error": "out of memory"}
        except Exception as error:
            return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"}

    def peak(self, precision: str) -> float | None:
        """The measured FLOP/s of matrix products in bf16, tf32 or fp32."""
        return self.environment.get("products", {}).get(precision)


def release(device: str) -> None:
    """Give back what nothing refers to any more."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
