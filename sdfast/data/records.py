"""What a table or a file of JSON lines gives, row by row, and what a person should know about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sdfast.data.items import Source
from sdfast.data.labels import Value


@dataclass(frozen=True)
class Record:
    """One row.

    Attributes:
        line: on which it ends, from 1.
        content: the file name or text, without blanks around it.
        label: as written, None where it has none.
        split: what the column of splits says, None without one.
    """

    line: int
    content: str
    label: Value = None
    split: object = None


@dataclass
class Notes:
    """What is said of all the files of a source together.

    Attributes:
        split: the column of splits of the file that is read, None without one.
    """

    split: str | None = None
    _sentences: list[str] = field(default_factory=list)
    _lines: dict[str, list[str]] = field(default_factory=dict)

    def take(self, sentences: Sequence[str]) -> None:
        """Keep sentences about columns, without the source's name and a full stop; each is said once for all files."""
        self._sentences += [sentence for sentence in sentences if sentence not in self._sentences]

    def count(self, what: str, where: str) -> None:
        """Count one line or file name under a title."""
        self._lines.setdefault(what, []).append(where)

    def add_to(self, source: Source) -> None:
        """Put everything among a source's warnings."""
        source.warnings += [f"{source.name}: {sentence}." for sentence in self._sentences]
        source.warnings += [f"{what}: {len(where):,} (the first: {where[0]})." for what, where in self._lines.items()]
