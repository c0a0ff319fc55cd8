"""A table of separated values that lists images or holds texts and, when it has them, their labels and splits."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from sdfast.data.columns import (
    NamedColumns,
    choose_names,
    find_split_column,
    fitting_names,
    taken_notes,
    unlabelled_notes,
)
from sdfast.data.config import DataConfig
from sdfast.data.lines import LONGEST_LINE, read_lines
from sdfast.data.modality import IMAGES, TEXTS, Modality, listed, other_than
from sdfast.data.records import Notes, Record
from sdfast.errors import UserError

_MARKS = ",;\t|"
_EXCEL = re.compile(r'\s*"?sep=(.)"?\s*', re.IGNORECASE)  # a line above the header, by which Excel knows the mark
_LOOKED_AT = 100  # rows by which a header is told from a row
_AGAIN = "Lines that are the header again, as where two tables were joined, and are left out"


@dataclass(frozen=True)
class Columns:
    """Where a table keeps its images or texts, its labels and its splits, and how its cells are separated."""

    header: list[str]
    content: str
    label: str | None
    delimiter: str


def table_header(path: Path, options: DataConfig, modality: Modality) -> Columns | None:
    """The columns of contents and labels, or None when the table has no column of contents.

    Raises:
        UserError: when a column that `options` names is not there, several may hold the contents, or the file is not a
            text table.
    """
    header, delimiter = _read_header(path, options, modality)
    found = choose_names(header, options, modality, str(path))
    return None if found.content is None else Columns(header, found.content, found.label, delimiter)


def table_names(path: Path, options: DataConfig, modality: Modality) -> list[str]:
    """The names of a table's columns.

    Raises:
        UserError: the file is not a text table.
    """
    return _read_header(path, options, modality)[0]


def is_table(path: Path) -> bool:
    """Whether the suffix (before .gz) is .csv or .tsv."""
    return path.name.lower().removesuffix(".gz").endswith((".csv", ".tsv"))


def read_table(path: Path, options: DataConfig, notes: Notes, modality: Modality) -> Iterator[Record]:
    """Yield the rows.

    Cells are quoted as usual in .csv files. In a .tsv file a row is a line, and a quotation mark is only a character,
    except where a cell begins and ends with one. A row that is the header again is passed over.

    Args:
        path: the file.
        options: its columns and encoding.
        notes: gets what a person should know.
        modality: what its contents are.

    Raises:
        UserError: no such column, no header, a header whose columns stand in another order below the first one, a row
            without a file name, a text in a row of other length than the header, or not a text table.
    """
    columns = table_header(path, options, modality)
    if columns is None:
        raise UserError(_why_no_column(path, options, modality))
    header = columns.header
    names = NamedColumns(columns.content, columns.label)
    notes.take(taken_notes(names, options, modality) + unlabelled_notes(names, header, options))
    notes.split = find_split_column(header, options, str(path), (columns.content, columns.label))
    wanted = (columns.content, columns.label, notes.split)
    content, label, split = (None if name is None else header.index(name) for name in wanted)
    assert content is not None
    for line, cells in _rows(path, columns, options):
        if _is_header(path, line, cells, header):
            notes.count(_AGAIN, f"{path.name} line {line}")
            continue
        if len(cells) != len(header) and modality is not IMAGES:
            raise UserError(
                f"{path} line {line} has {len(cells)} cells, not {len(header)} as the header: quote texts that "
                "hold the separator or a line end."
            )
        value = cells[content].strip() if len(cells) > content else ""
        if not value and modality is IMAGES:
            raise UserError(f"{path} line {line}: no file name in column {columns.content!r}.")
        yield Record(line, value, _cell(cells, label), _cell(cells, split))


def _cell(cells: list[str], column: int | None) -> str | None:
    return None if column is None or column >= len(cells) else cells[column].strip() or None


def _is_header(path: Path, line: int, cells: list[str], header: list[str]) -> bool:
    """Whether a row of more than one cell holds the names of the columns."""
    if len(header) < 2 or len(cells) != len(header) or cells[0].strip().lstrip("\ufeff") not in header:
        return False
    names = [cell.strip().lstrip("\ufeff") for cell in cells]
    if names == header:
        return True
    if sorted(names) == sorted(header):
        raise UserError(f"{path} line {line} is a header again, with its columns in another order; pass two tables.")
    return False


def _rows(path: Path, columns: Columns, options: DataConfig) -> Iterator[tuple[int, list[str]]]:
    """(line on which it ends, cells) of each row below the header."""
    lines = _lines(path, options)
    above, _ = next(lines, (1, ""))  # the header, which table_header has read
    if _is_tsv(path) and columns.delimiter == "\t":
        for line, text in lines:
            if text.strip():
                yield line, [_unquoted(cell) for cell in text.rstrip("\r\n").split("\t")]
        return
    csv.field_size_limit(LONGEST_LINE)  # characters; else 131,072
    reader = csv.reader((text for _, text in lines), delimiter=columns.delimiter, skipinitialspace=True)
    try:
        for cells in reader:
            if cells:
                yield reader.line_num + above, cells
    except csv.Error as error:
        raise UserError(
            f"{path} near line {reader.line_num + 1 + above} is not a text table: {_why(error)}."
        ) from error


def _lines(path: Path, options: DataConfig) -> Iterator[tuple[int, str]]:
    """(number, line), from the header on."""
    lines = read_lines(path, "text table", options.encoding)
    first = next(lines, None)
    if first is not None and not _EXCEL.fullmatch(first[1]):
        yield first
    yield from lines


def _why(error: csv.Error) -> str:
    said = str(error)
    if "field limit" in said:
        return f"a cell is longer than {LONGEST_LINE:,} characters; look for a quotation mark that is not closed"
    return "its lines end in several ways; save it again" if "new-line" in said else said


def _read_header(path: Path, options: DataConfig, modality: Modality) -> tuple[list[str], str]:
    """The names of the columns, and the mark between them: that by which the column of contents is among them."""
    _, line = next(_lines(path, options), (0, ""))
    headers = {mark: _split(path, line, mark) for mark in ("\t" + _MARKS if _is_tsv(path) else _MARKS)}
    wanted: str | None = getattr(options, modality.key)
    for documented, usual in ((wanted or modality.column, ()), (modality.column, modality.listed_columns)):
        for mark, header in headers.items():
            if fitting_names(header, documented, usual):
                return header, mark
    mark = max(headers, key=lambda mark: len(headers[mark]))  # the first of those that make most columns
    return headers[mark], mark


def _split(path: Path, line: str, mark: str) -> list[str]:
    try:
        return [cell.strip() for cell in next(csv.reader([line], delimiter=mark), [])]
    except csv.Error as error:
        raise UserError(f"{path} line 1 is no header of a text table: {_why(error)}.") from error


def _why_no_column(path: Path, options: DataConfig, modality: Modality) -> str:
    """The sentence for a table without a column of contents."""
    header, delimiter = _read_header(path, options, modality)
    if _looks_like_a_row(path, Columns(header, "", None, delimiter), options):
        return (
            f"{path} has no header: its first line is a row ({listed(header)}); write the names of the columns above "
            f"it, as {f'{modality.column}{delimiter}label'!r}."
        )
    said = f"{path} has no column {modality.column!r}; its columns are {listed(header)}: "
    other = other_than(modality)
    if fitting_names(header, other.column, other.listed_columns):
        return f"{said}{modality.otherwise}."
    return (
        f"{said}name the one with the {'image files' if modality is IMAGES else 'texts'} by "
        f"data.{modality.key}=..., or, if this is its first row, write the names of the columns above it."
    )


def _looks_like_a_row(path: Path, columns: Columns, options: DataConfig) -> bool:
    """Whether the first line names a file, or has a cell that occurs in the rows below it, as a label does."""
    if any(Path(cell).suffix.lower() in IMAGES.suffixes | TEXTS.suffixes for cell in columns.header):
        return True
    below = [row for _, row in islice(_rows(path, columns, options), _LOOKED_AT)]
    return any(
        cell and any(len(row) > at and row[at].strip() == cell for row in below)
        for at, cell in enumerate(columns.header)
        if len(columns.header) > 1
    )


def _is_tsv(path: Path) -> bool:
    return path.name.lower().removesuffix(".gz").endswith(".tsv")


def _unquoted(cell: str) -> str:
    cell = cell.strip()
    quoted = len(cell) >= 2 and cell[0] == cell[-1] == '"'
    return cell[1:-1].replace('""', '"') if quoted else cell
