"""What a step turned out to be: captured or not, compiled or not, by which attention, in how much memory."""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from sdfast.log import log


class Heard(logging.Handler):
    """Keeps the package's messages, and beneath one that is said while an exception is handled its whole traceback."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.said: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        said = record.getMessage()
        if sys.exc_info()[0] is not None:
            said += "\n" + traceback.format_exc()
        self.said.append(said)

    @property
    def attention(self) -> list[str]:
        """Which backend was chosen, with the times of all."""
        return [said.removeprefix("attention: ") for said in self.said if said.startswith("attention: ")]


@contextmanager
def listening() -> Iterator[Heard]:
    """Hear what the package says inside."""
    heard, level = Heard(), log.level
    log.addHandler(heard)
    log.setLevel(logging.INFO)
    try:
        yield heard
    finally:
        log.removeHandler(heard)
        log.setLevel(level)


def compilation() -> dict[str, Any]:
    """What the compiler did in this process: graphs, breaks, recompilations, what it found in its cache."""
    from torch._dynamo.utils import counters, get_compilation_metrics

    metrics = get_compilation_metrics()
    found: dict[str, Any] = {
        name: counters[name] for name in ("frames", "stats", "inductor", "aot_autograd") if name in counters
    }
    cached = {key: value for name in ("inductor", "aot_autograd") for key, value in found.get(name, {}).items()}
    return {
        "frames": int(found.get("frames", {}).get("ok", 0)),
        "graphs": int(found.get("stats", {}).get("unique_graphs", 0)),
        "graph_breaks": {str(reason)[:300]: count for reason, count in counters["graph_break"].items()},
        "recompiles": [each.recompile_reason for each in metrics if getattr(each, "recompile_reason", None)],
        "cache": {key: value for key, value in cached.items() if "cache" in key},
    }


def compiled_modules(module: nn.Module) -> int:
    """How many of a module's parts were asked to be compiled, as `sdfast.models.compiled` does."""
    return sum(getattr(part, "compiled", False) is True for part in module.modules())


class Memory:
    """Of a process on the GPU, from now on: the largest allocated beyond what is, and the largest reserved."""

    def __init__(self, device: str) -> None:
        self.cuda, self.before = device == "cuda", 0
        if self.cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self.before = torch.cuda.memory_allocated()

    def row(self) -> dict[str, int]:
        """In bytes; `card` is all that is taken of the card now, by this process and any other."""
        if not self.cuda:
            return {}
        torch.cuda.synchronize()
        free, total = torch.cuda.mem_get_info()
        peak = torch.cuda.max_memory_allocated() - self.before
        return {"peak_bytes": peak, "reserved_bytes": torch.cuda.max_memory_reserved(), "card_bytes": total - free}
