"""The rows of a run: one JSON object a line, on the disk as soon as it was measured."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

NAME = "rows.jsonl"
Row = dict[str, Any]


class UsageError(Exception):
    """What cannot be run, in a sentence."""


def append(path: Path, row: Row) -> None:
    """Write a row behind the others, and see that it is on the disk: whoever is killed afterwards has not lost it.

    One write of a whole line, so that processes that append at the same time do not mix theirs.
    """
    line = json.dumps(finite(row), default=str).encode() + b"\n"
    with open(path, "a+b", buffering=0) as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            line = line if file.read(1) == b"\n" else b"\n" + line  # behind a line that was cut off
        file.write(line)
        os.fsync(file.fileno())


def read(path: Path) -> list[Row]:
    """The rows that are whole: a process that is killed while it writes leaves a part of a line."""
    found = []
    for line in path.read_bytes().splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            found.append(row)
    return found


def read_all(folders: Iterable[Path]) -> list[Row]:
    """The rows of several runs, in their order."""
    return [row for folder in folders for row in read(folder / NAME)]


def finite(value: Any) -> Any:
    """The same with None for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {str(key): finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_whole(path: Path, text: str) -> None:
    """Beside it first, so that a reader never finds a half."""
    beside = path.with_name(path.name + ".new")
    beside.write_text(text, encoding="utf-8")
    beside.replace(path)
