"""What lies in a folder, so that two runs can be compared bit by bit; times and speeds are left out."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

VOLATILE = {
    "at",
    "img_per_s",
    "peak_share",
    "rate",
    "resumed",
    "seconds",
    "seq_per_s",
    "step_seconds",
    "tflops",
    "wait_share",
}
LOGS = ("log.txt", ".lock", "report.html")  # growing, empty, or for a person


def contents(folder: Path) -> dict[str, Any]:
    """Every file below a folder by its path: bytes, or the JSON value, without what differs between runs and places."""
    found: dict[str, Any] = {}
    for root, names, files in os.walk(folder):
        if not names and not files:
            found[f"{Path(root).relative_to(folder)}/"] = "empty folder"
        for name in (*files, *(name for name in names if (Path(root) / name).is_symlink())):
            path = Path(root) / name
            found[str(path.relative_to(folder))] = "" if name in LOGS else _content(path, str(folder))
    return found


def _content(path: Path, place: str) -> Any:
    kind = path.lstat().st_mode
    if stat.S_ISLNK(kind):
        return f"link to {os.readlink(path)}"
    if not stat.S_ISREG(kind):
        return "no regular file"
    data = path.read_bytes().replace(place.encode(), b"@")
    try:
        if path.suffix == ".json":
            return _without_seal(json.loads(data))
        if path.suffix == ".jsonl":
            return [_steady(json.loads(line)) for line in data.splitlines()]
    except (ValueError, RecursionError):
        pass
    return data


def _without_seal(value: Any) -> Any:
    """Without what differs, and then without the value's digest of itself, which is over that too."""
    steady = _steady(value)
    return {key: each for key, each in steady.items() if key != "sha256"} if steady != value else steady


def _steady(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _steady(each) for key, each in value.items() if key not in VOLATILE}
    return [_steady(each) for each in value] if isinstance(value, list) else value


def differing(here: dict[str, Any], there: dict[str, Any]) -> list[str]:
    """Names of what is not the same, or not in both."""
    absent = object()
    return sorted(name for name in {**here, **there} if not _same(here.get(name, absent), there.get(name, absent)))


def _same(one: Any, other: Any) -> bool:
    """As JSON tells values apart: True is not 1, and 1 is not 1.0."""
    if isinstance(one, bytes) or isinstance(other, bytes) or not isinstance(one, (dict, list, str)):
        return type(one) is type(other) and one == other
    return type(one) is type(other) and json.dumps(one) == json.dumps(other)
