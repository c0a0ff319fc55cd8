"""Where the predictions of an evaluation are written in a run directory, and when they go."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

from sdfast.durable import read_json, write_json
from sdfast.rundir import slug

_OWN = "predictions.csv"  # on the run's own test split
_LEDGER = "predictions.json"  # the sources of all others, by the name of the file
_NAME = re.compile(r"predictions-[A-Za-z0-9._-]+\.csv")


def file_for(out: Path, data: str | None) -> Path:
    """The file for the predictions on a source; those on another stay, whatever the two are called.

    Args:
        out: the run directory.
        data: the source as it was asked for; None for the run's own test split.
    """
    if data is None:
        return out / _OWN
    path = Path(data).expanduser()
    source = str(path.resolve()) if path.exists() else data
    known = _ledger(out)
    name = next((name for name, of in known.items() if of == source), None)
    if name is None:
        stem = f"predictions-{slug(path.stem if path.is_file() else data)}"
        names = itertools.chain([f"{stem}.csv"], (f"{stem}-{number}.csv" for number in itertools.count(2)))
        name = next(name for name in names if name not in known and not (out / name).exists())
        write_json(out / _LEDGER, {**known, name: source})
    return out / name


def remove(out: Path) -> None:
    """Remove all predictions: they are of a model that is there no more."""
    for name in (_OWN, *_ledger(out), _LEDGER):
        (out / name).unlink(missing_ok=True)


def _ledger(out: Path) -> dict[str, str]:
    stored = read_json(out / _LEDGER)
    entries = stored.items() if isinstance(stored, dict) else ()
    return {name: of for name, of in entries if isinstance(of, str) and _NAME.fullmatch(name)}
