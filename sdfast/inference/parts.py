"""What is computed of new rows, kept part by part on the disk: a command that was stopped goes on with the next part.

A part is a parquet file with checksums of its pages. Its metadata say which items it is of, by content, and what made
it; one that is not of what is asked for is made again, and so are those behind it. Whoever reads the parts in their
order has the same rows however often the command was stopped.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdfast import durable
from sdfast.data.pack_build import LookAhead
from sdfast.data.pack_checks import first_names
from sdfast.errors import Interrupted, UserError
from sdfast.inference.rows import Held, NewRows
from sdfast.log import clock_time, log

if TYPE_CHECKING:
    import pyarrow as pa

ROWS = 1024  # of a part: a whole number of batches, so that it decides no rounding of images
PLAN = "plan.json"
_KEY = b"sdfast"
_SECONDS = 5.0  # between two lines
_NAMED = 1000  # broken items that are named
_FEW = 10  # of those that a person may not expect
_OTHER = "\U0010ffff"  # the name of any other, behind all names


@dataclass
class Parts:
    """Parts that are finished.

    Attributes:
        paths: in order.
        rows: of all.
        items: of the source.
        skipped: items that cannot be used.
        broken: the first of them: `split`, `name` and `reason`.
        source: the digest of all items.
        notes: see `Held`; of each kind the first names, and a stand-in for every other one.
    """

    paths: list[Path] = field(default_factory=list)
    rows: int = 0
    items: int = 0
    skipped: int = 0
    broken: list[dict[str, str]] = field(default_factory=list)
    source: str = ""
    notes: dict[str, list[str]] = field(default_factory=dict)

    def add(self, path: Path, about: dict[str, Any]) -> None:
        """Take in a part."""
        self.paths.append(path)
        self.rows += about["rows"]
        self.items += about["items"]
        self.skipped += len(about["skipped"])
        self.broken += about["skipped"][: _NAMED - len(self.broken)]
        for note, (count, names) in about["notes"].items():
            known = self.notes.setdefault(note, [])
            named = names[: max(0, _FEW - len(known))]
            known += [*named, *[_OTHER] * (count - len(named))]
        self.source = hashlib.sha256(f"{self.source}{about['records']}".encode()).hexdigest()

    def tables(self) -> Iterator[pa.Table]:
        """What the parts hold, one after the other."""
        return (_read(path) for path in self.paths)


def made_parts(
    folder: Path,
    rows: NewRows,
    identity: Any,
    work: Callable[[Held], pa.Table],
    what: str,
    size: int = ROWS,
) -> Parts:
    """The parts of all rows: those that are there, and then the others.

    Args:
        folder: of the parts; made where it is not.
        rows: of the source.
        identity: what decides the result beside the rows, as a JSON value.
        work: from rows in memory to a table with one row for each of them.
        what: is done, for the log.
        size: rows of a part.

    Raises:
        UserError: no row can be used.
        Interrupted: by Ctrl-C; what is done is kept.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for other in folder.glob("out.*"):
        other.unlink()
    try:
        try:
            parts = _made(folder, rows, identity, work, what, size)
        except LookAhead:
            rows.look_ahead()
            parts = _made(folder, rows, identity, work, what, size)
    except KeyboardInterrupt:
        raise Interrupted(
            "interrupted; what is done is saved, and the same command continues from here.", signal.SIGINT
        ) from None
    for sentence in rows.builder.said(parts.notes):
        log.warning("data: %s", sentence)
    _say_skipped(parts, rows)
    return parts


def _made(folder: Path, rows: NewRows, identity: Any, work: Callable[[Held], pa.Table], what: str, size: int) -> Parts:
    of, parts, say = (
        durable.sha256_json([identity, rows.identity, size]),
        Parts(),
        _Progress(what, len(rows), rows.plural),
    )
    items = rows.items()
    for path, about in _there(folder, of):
        taken = rows.records(islice(items, about["items"]))
        if _digest(list(taken)) != about["records"]:
            items = islice(rows.items(), parts.items, None)
            break
        parts.add(path, about)
        say.known(parts.items)
    for path in sorted(folder.glob("part-*.parquet"))[len(parts.paths) :]:
        path.unlink()
    if parts.items:
        log.info("%s: going on after %d of %d %s", what, parts.items, len(rows), rows.plural)
    for held in rows.parts(items, parts.items, size):
        table = work(held)
        path = folder / f"part-{len(parts.paths):06d}.parquet"
        about = {
            "of": of,
            "rows": table.num_rows,
            "items": held.items,
            "records": _digest(held.records),
            "skipped": held.skipped,
            "notes": {note: (len(names), names[:_FEW]) for note, names in sorted(held.notes.items())},
        }
        _write(path, table, about)
        parts.add(path, about)
        say(parts.items)
    return parts


def _there(folder: Path, of: str) -> Iterator[tuple[Path, dict[str, Any]]]:
    """The parts that are there from the first on, whole and of what is asked for."""
    import pyarrow as pa

    number = 0
    while (path := folder / f"part-{number:06d}.parquet").is_file():
        try:
            about = json.loads((_read(path).schema.metadata or {})[_KEY])
        except (pa.ArrowException, OSError, KeyError, ValueError):
            return
        if about["of"] != of:
            return
        yield path, about
        number += 1


def _write(path: Path, table: pa.Table, about: dict[str, Any]) -> None:
    import pyarrow.parquet as pq

    metadata, content = {**(table.schema.metadata or {}), _KEY: json.dumps(about)}, io.BytesIO()
    pq.write_table(table.replace_schema_metadata(metadata), content, write_page_checksum=True)
    durable.write_bytes(path, content.getvalue())


def _read(path: Path) -> pa.Table:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, page_checksum_verification=True) as file:
        return file.read()


def _digest(records: list[bytes]) -> str:
    return hashlib.sha256(b"".join(records)).hexdigest()


def _say_skipped(parts: Parts, rows: NewRows) -> None:
    """Say which items cannot be used.

    Raises:
        UserError: none can.
    """
    if not parts.skipped:
        return
    named = first_names([f"{one['name']} ({one['reason']})" for one in parts.broken])
    if not parts.rows:
        raise UserError(f"{rows.source.name}: none of {parts.items:,} {rows.plural} can be used: {named}.")
    more = ", ..." * (parts.skipped > len(parts.broken))
    what = f"{parts.skipped:,} of {parts.items:,} {rows.plural}"
    log.warning("data: left out %s, which cannot be used: %s%s.", what, named, more)


def put_file(staged: Path, target: Path) -> None:
    """Give a finished file its name; what was there is replaced."""
    with durable.explain_os_error(target):
        durable.fsync_path(staged)
        staged.replace(target)
        durable.fsync_path(target.parent)


def remove_parts(folder: Path) -> None:
    """Remove the parts when what they became is durable."""
    shutil.rmtree(folder, ignore_errors=True)


class _Progress:
    """Says every few seconds how far the rows are, how fast, and how long it will take."""

    def __init__(self, what: str, total: int, plural: str) -> None:
        self._what, self._total, self._plural = what, total, plural
        self._began = self._said = time.monotonic()
        self._before = 0

    def known(self, done: int) -> None:
        """So many were there already."""
        self._before, self._began = done, time.monotonic()

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        if now - self._said < _SECONDS or done == self._total:
            return
        self._said = now
        rate = (done - self._before) / max(now - self._began, 1e-9)
        left = clock_time((self._total - done) / max(rate, 1e-9))
        log.info("%s: %d of %d %s  %.0f/s  %s left", self._what, done, self._total, self._plural, rate, left)
