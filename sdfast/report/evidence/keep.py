"""Where evidence lies: one JSON file an item, with what it was made from and a digest of itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdfast.durable import check_seal, load_json, sealed, write_json
from sdfast.errors import UserError
from sdfast.rundir import REPORT_FOLDER

FOLDER = REPORT_FOLDER
_VERSION = 1  # of what is kept: another is made anew


def read(out: Path, item: str) -> dict[str, Any] | None:
    """What is kept of an item: a JSON object with `of`, what it was made from; None where that is not whole.

    Args:
        out: the run directory.
        item: its name.
    """
    try:
        value = load_json(path(out, item))
        if not isinstance(value, dict) or "sha256" not in value or value.get("version") != _VERSION:
            return None
        check_seal(value)
    except (OSError, ValueError, UserError):
        return None
    return value


def read_made_of(out: Path, item: str, of: Mapping[str, Any]) -> dict[str, Any] | None:
    """The same where it was made from this; else None."""
    value = read(out, item)
    return value if value is not None and value.get("of") == of else None


def write(out: Path, item: str, of: Mapping[str, Any], value: Mapping[str, Any]) -> None:
    """Keep an item durably."""
    write_json(path(out, item), sealed({"version": _VERSION, "of": dict(of), **value}))


def path(out: Path, item: str) -> Path:
    """The file of an item."""
    return out / FOLDER / f"{item}.json"
