"""Where what is computed of a new source goes in a run directory; results on other sources stay."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from pathlib import Path

from sdfast.durable import read_json, write_json
from sdfast.errors import UserError
from sdfast.inference.parts import PLAN
from sdfast.rundir import slug


def source_of(data: str) -> str:
    """What a source is known by: its whole path, or its name on the hub."""
    path = Path(data).expanduser()
    return str(path.resolve()) if path.exists() else data


def stem_for(data: str, taken: Callable[[str], str | None], ending: str = "") -> str:
    """A name for what is computed of a source: of the source, with a number where another one has it.

    Args:
        data: the source as it was asked for.
        taken: of which source a name is; None where it is free.
        ending: of the name.
    """
    path = Path(data).expanduser()
    base = slug(path.stem if path.is_file() else data) + ending
    names = itertools.chain([base], (f"{base}-{number}" for number in itertools.count(2)))
    return next(name for name in names if taken(name) in (None, source_of(data)))


def parts_folder(target: Path) -> Path:
    """Where the parts of a file or folder lie while it is made: beside it."""
    return target.with_name(f".partial-{target.name}")


def begin(folder: Path, data: str) -> None:
    """Make the folder of parts, and note of which source they are."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / PLAN, {"source": source_of(data)})


def noted_source(path: Path) -> str | None:
    """The source that a JSON file of ours names; None where there is no such file, "" where it names none."""
    if not path.exists():
        return None
    stored = read_json(path)
    source = stored.get("source") if isinstance(stored, dict) else None
    return source if isinstance(source, str) else ""


def check_writable(folder: Path, option: str) -> None:
    """Check, before anything is computed, that something can be written in a folder.

    Raises:
        UserError: it is not there, or may not be written.
    """
    if not folder.is_dir():
        raise UserError(f"{option}: there is no folder {folder}.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{option}: {folder} cannot be written; choose another place by --to.")
