"""Rows of a card as a result that can be kept: benchmarks/results/gpu_<card>.md and .json."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpu_parts import collect, render
from gpu_parts.rows import Row, UsageError, write_whole


def publish(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Write both files; tracebacks and what else only a repair needs stay behind.

    Raises:
        UsageError: the rows are of a quick run, or of no card.
    """
    suite = collect.suite(rows)
    name = suite["parts"].get("environment", {}).get("card", {}).get("name")
    if suite["quick"] or not name:
        raise UsageError("only rows that were measured on a card, and not with --quick, are published.")
    card = re.sub(r"[^a-z0-9]+", "_", name.lower().removeprefix("nvidia")).strip("_")
    paths = [folder / f"gpu_{card}.{kind}" for kind in ("json", "md")]
    suite = without_paths(suite)
    write_whole(paths[0], json.dumps(suite, indent=1) + "\n")
    write_whole(paths[1], render.markdown(suite))
    return paths


def without_paths(value: Any) -> Any:
    """The same with the folders of absolute paths cut off: whose machine it was is no part of a result."""
    if isinstance(value, dict):
        return {key: without_paths(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_paths(inner) for inner in value]
    return re.sub(r"(?<![\w.])(?:/[\w.+-]+)+/(?=[\w.+-])", "", value) if isinstance(value, str) else value
