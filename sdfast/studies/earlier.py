"""The tables that earlier commands left: what belongs to one stays in it, and none is lost to a smaller one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from sdfast.durable import explain_os_error, fsync_path, read_json, sha256_file
from sdfast.studies.units import Unit, UnitKind, kind_of, unit_of

ENDINGS = (".md", ".csv", ".png", ".svg", ".json")  # the last one says what they all are, and is moved last
_DIGITS = 8


class Trained(NamedTuple):
    """A run of a table: title of its arm, seed, fingerprint, and the fold or chain that it is of, if any."""

    title: str
    seed: int
    fingerprint: str
    unit: Unit | None


@dataclass(frozen=True)
class Earlier:
    """A table that is there.

    Attributes:
        protocol: `paper` or `full`.
        runs: what it shows, by data set as it was asked for.
        points: where the arms of each data set are on the study's axis.
        kind: what one value of an arm is of.
        folds: into how many the rows were divided, or None.
    """

    protocol: str
    runs: Mapping[str, frozenset[Trained]]
    points: Mapping[str, frozenset[int]]
    kind: UnitKind = "seed"
    folds: int | None = None

    def trained(self) -> frozenset[Trained]:
        """All runs that the table shows, over all of its data sets."""
        return frozenset().union(*self.runs.values())


def earlier_tables(out: Path, study: str) -> list[Earlier]:
    """Those of a study in a folder: the table of its name, and those that were set aside."""
    paths = [out / f"{study}.json", *_set_aside(out, study)]
    return [table for path in paths if (table := _table(path, study)) is not None]


def make_room(out: Path, study: str, trained: frozenset[Trained]) -> str | None:
    """Rename a study's files where they show a run that the new ones do not, or are none of ours.

    Args:
        out: the study's folder.
        study: its name.
        trained: what the new table shows.

    Returns:
        What they are called now, without their ending; None where they may be overwritten.
    """
    path = out / f"{study}.json"
    if not path.exists() or ((table := _table(path, study)) is not None and table.trained() <= trained):
        return None
    aside = f"{study}-{sha256_file(path)[:_DIGITS]}"
    for ending in ENDINGS:
        if (file := out / f"{study}{ending}").exists():
            with explain_os_error(file):
                os.replace(file, out / f"{aside}{ending}")
    fsync_path(out)
    return aside


def sweep(out: Path, study: str, trained: frozenset[Trained]) -> None:
    """Remove tables that were set aside and stand, whole, in the new one."""
    for path in _set_aside(out, study):
        if (table := _table(path, study)) is not None and table.trained() <= trained:
            for ending in ENDINGS:
                path.with_suffix(ending).unlink(missing_ok=True)


def _set_aside(out: Path, study: str) -> list[Path]:
    """Files that `make_room` renamed and nobody has changed since."""
    paths = sorted(out.glob(f"{study}-{'[0-9a-f]' * _DIGITS}.json"))
    return [path for path in paths if path.is_file() and path.stem == f"{study}-{sha256_file(path)[:_DIGITS]}"]


def _table(path: Path, study: str) -> Earlier | None:
    """None when the file is absent, or not what a study of that name wrote."""
    found: Any = read_json(path)
    try:
        if found["study"] != study:
            return None
        runs, points = {}, {}
        folds = None if found.get("folds") is None else int(found["folds"])
        for data in found["data"]:
            arms = data["arms"]
            runs[str(data["source"])] = frozenset(
                Trained(str(arm["title"]), int(run["seed"]), str(run["fingerprint"]), unit_of(run))
                for arm in arms
                for run in arm["runs"]
            )
            points[str(data["source"])] = frozenset(
                int(arm["x"]) for arm in arms if arm["x"] is not None and arm["runs"]
            )
        return Earlier(str(found["protocol"]), runs, points, kind_of(found), folds)
    except (KeyError, TypeError, ValueError):
        return None
