"""What a part is given: the device, what of it is wanted, the time it has, and where its rows go."""

from __future__ import annotations

import gc
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gpu_parts.rows import Row, append

AGAIN = 75  # exit code of a part's process that wants the rest of its rows measured in a new one


@dataclass
class Context:
    """A part's circumstances.

    Attributes:
        device: cuda or cpu.
        quick: tiny sizes, and nothing compiled.
        part: its name.
        what: which rows of the part are wanted; it is written into each of them.
        seconds: what the part may take; it starts nothing new when that is spent.
        folder: to write in.
        rows: the file of the rows.
        began: when the suite began, by `time.monotonic`.
        threads: of this process.
        done: the `item`s of rows that an earlier process of the same part wrote.
    """

    device: str
    quick: bool
    part: str = ""
    what: Row = field(default_factory=dict)
    seconds: float = 60.0
    folder: Path = Path()
    rows: Path = Path("rows.jsonl")
    began: float = field(default_factory=time.monotonic)
    threads: int = 1
    done: frozenset[str] = frozenset()
    started: float = field(default_factory=time.monotonic)

    def left(self) -> float:
        """Seconds of the part's time that are left."""
        return self.seconds - (time.monotonic() - self.started)

    def write(self, row: Row) -> None:
        """Keep a row of this part."""
        append(self.rows, {"part": self.part, **self.what, "at": time.monotonic() - self.began, **row})

    def attempt(self, function: Callable[..., Any], *args: Any, needs: float = 0.0) -> Any:
        """`function(*args)`; or what went wrong, as `failure` has it; or that its time was not left."""
        if self.left() < needs:
            return {"error": f"not reached: less than {needs:.0f} s of the part's time were left"}
        try:
            return function(*args)
        except Exception as error:
            return failure(error)


def failure(error: BaseException) -> Row:
    """What went wrong in one line, and the whole traceback."""
    words = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    if isinstance(error, torch.OutOfMemoryError):
        words = "out of memory"
    return {"error": words, "traceback": "".join(traceback.format_exception(error))}


def release(device: str) -> None:
    """Give back what nothing refers to any more."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()
