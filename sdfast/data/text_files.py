"""Files that hold many documents: JSON lines, tables and plain lines, one file for each split."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from sdfast.data.columns import text_reader
from sdfast.data.config import DataConfig
from sdfast.data.encoding import SAMPLE, UTF8, decoded, marked_encoding, wide_encoding
from sdfast.data.items import Item, Raw, Source, split_name, split_of_file
from sdfast.data.json_lines import read_json_lines
from sdfast.data.labels import Value, compare_classes, number_labels
from sdfast.data.lines import LONGEST_LINE, read_lines
from sdfast.data.modality import TEXTS
from sdfast.data.records import Notes, Record
from sdfast.data.split_column import use_split_column
from sdfast.data.split_files import files_by_split
from sdfast.data.table import read_table
from sdfast.errors import UserError
from sdfast.regular import read_regular


def _read_lines(path: Path, options: DataConfig, notes: Notes) -> Iterator[Record]:
    for line, text in read_lines(path, encoding=options.encoding):
        yield Record(line, text.strip())


def _read_table(path: Path, options: DataConfig, notes: Notes) -> Iterator[Record]:
    return read_table(path, options, TEXTS, notes)


_READERS: dict[str, Callable[[Path, DataConfig, Notes], Iterator[Record]]] = {
    "jsonl": read_json_lines,
    "ndjson": read_json_lines,
    "json": read_json_lines,
    "csv": _read_table,
    "tsv": _read_table,
    "txt": _read_lines,
}
_COMMON = ("json", "txt")  # suffixes that other files have too


@dataclass(frozen=True)
class _Part:
    """One file of a split: its path, its name relative to the source, and its documents."""

    path: Path
    name: str
    documents: int


class LineItems:
    """An `ItemList` over the documents of some files, read again from the first one at every pass."""

    def __init__(self, parts: list[_Part], options: DataConfig, labels: list[int | None]) -> None:
        self._parts = parts
        self._options = options
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[Item]:
        row = 0
        for part in self._parts:
            for record in islice(_records(part.path, self._options, Notes()), part.documents):
                text = record.content
                yield Item(f"{part.name}:{record.line}", self.labels[row], text_reader(text), held=len(text))
                row += 1

    def __getitem__(self, index: int) -> Item:
        index = range(len(self))[index]
        return next(islice(iter(self), index, None))


def document_reader(path: Path, encoding: str) -> Callable[[], Raw]:
    """Reads the file of one document in UTF-8, of at most 64 MiB; OSError otherwise.

    Args:
        path: a link is followed.
        encoding: of a file that does not begin with a byte order mark. What is to be UTF-8 is given as it is.
    """

    def read() -> Raw:
        content = read_regular(path, LONGEST_LINE)
        written = marked_encoding(content) or encoding
        if written in (UTF8, "utf-8-sig"):
            if (wide := wide_encoding(content[:SAMPLE])) is not None:
                raise OSError(errno.EILSEQ, f"it looks like {wide}; set data.encoding={wide}", str(path))
            return content
        if (text := decoded(content, written)) is None:
            raise OSError(errno.EILSEQ, f"it is not {written} (data.encoding)", str(path))
        return text.encode()

    return read


def is_text_file(path: Path) -> bool:
    """Whether the suffix (before .gz) is one of a file that holds documents."""
    return _format(path) in _READERS


def text_files(folder: Path) -> list[Path]:
    """The files of `folder` that hold many documents each; none when its .txt files are a document each.

    Files of one format that name splits (`train.jsonl`, `train-0.jsonl`) come first, or else all JSON lines and tables.
    A .json or .txt file has to be called as a split is, as there are others of this suffix.

    Raises:
        UserError: when files of several formats name splits.
    """
    visible = sorted(entry for entry in folder.iterdir() if entry.is_file() and not entry.name.startswith("."))
    found = [entry for entry in visible if is_text_file(entry)]
    named = [entry for entry in found if _names_split(entry)]
    for entry in named:
        if _format(entry) != _format(named[0]):
            raise UserError(
                f"{folder} holds {named[0].name} and {entry.name}, data files of several formats; pass one format."
            )
    return named or [entry for entry in found if _format(entry) not in _COMMON]


def _names_split(path: Path) -> bool:
    name = path.name.split(".")[0]
    return (split_name(name) if _format(path) in _COMMON else split_of_file(name)) is not None


def open_text_files(path: Path, files: list[Path], options: DataConfig) -> Source:
    """Open one or more .jsonl, .csv, .tsv or .txt files (the last: a document per line, without labels).

    Args:
        path: the file, or the folder that holds them.
        files: of one format, at least one; `train`, `dev` and `test` in their names make the splits.
        options: the names of the fields or columns.

    Raises:
        UserError: an empty file, a class of test that train lacks, or content that cannot be used (its line is named).
    """
    source = Source(path.name, _format(files[0]), None, {}, modality=TEXTS)
    parts: dict[str, list[_Part]] = {}
    labels: dict[str, list[Value]] = {}
    splits: dict[str, list[object]] = {}
    notes, column = Notes(), None
    for split, named in files_by_split(path, files, source).items():
        parts[split], labels[split], splits[split] = [], [], []
        for file, name in named:
            before = len(labels[split])
            for record in _records(file, options, notes):
                labels[split].append(record.label)
                splits[split].append(record.split)
            found = len(labels[split]) - before
            if not found:
                raise UserError(f"{file} holds no documents.")
            parts[split].append(_Part(file, name, found))
            column = column or notes.split
            if notes.split is None:  # a file without the column is what its name says
                splits[split][before:] = [split] * found
    source.class_names, numbers = number_labels(labels, None, source.name)
    notes.add_to(source)
    source.splits.update({split: LineItems(parts[split], options, numbers[split]) for split in parts})
    use_split_column(source, column, splits, options)
    compare_classes(source, strict=True, unseen=options.unseen)
    return source


def _records(path: Path, options: DataConfig, notes: Notes) -> Iterator[Record]:
    return _READERS[_format(path)](path, options, notes)


def _format(path: Path) -> str:
    return path.name.lower().removesuffix(".gz").rpartition(".")[2]
