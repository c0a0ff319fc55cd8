"""A table of separated values that lists images or holds texts and, when it has them, their labels and splits."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

from sdfast.data.columns import choose_names, column_notes, find_group_column, find_split_column, fitting_names
from sdfast.data.config import DataConfig
from sdfast.data.lines import LONGEST_LINE, read_lines, suffix_of
from sdfast.data.modality import IMAGES, TEXTS, Modality, listed, other_than
from sdfast.data.records import Notes, Record
from sdfast.data.several import Cells
from sdfast.errors import UserError

_MARKS = ",;\t|"
_EXCEL = re.compile(r'\s*"?sep=(.)"?\s*', re.IGNORECASE)  # a line above the header, by which Excel knows the mark
_LOOKED_AT = 100  # rows by which a header is told from a row
_NO_MARK = "\x1f"  # between the cells of a row that is one cell
_BLANK = "Rows whose cells are all empty, which are left out"
_LONG = "Rows with more cells than the header, of which the last are not used (quote cells that hold the separator)"
_AGAIN = "Lines that are the header again, as where two tables were joined, and are left out"


def is_table(path: Path) -> bool:
    """Whether the suffix (before .gz) is .csv or .tsv."""
    return path.name.lower().removesuffix(".gz").endswith((".csv", ".tsv"))


def read_header(path: Path, options: DataConfig, modality: Modality) -> tuple[list[str], str]:
    """The names of the columns, and the mark between them: that by which the column of contents is among them.

    Raises:
        UserError: the file is not a text table.
    """
    _, line = next(_lines(path, options, Notes()), (0, ""))
    marks = "\t" + _MARKS if suffix_of(path) == "tsv" else _MARKS
    try:
        headers = {mark: [cell.strip() for cell in next(csv.reader([line], delimiter=mark), [])] for mark in marks}
    except csv.Error as error:
        raise UserError(f"{path} line 1 is no header of a text table: {_why(error)}.") from error
    wanted: str | None = getattr(options, modality.key)
    for documented, usual in ((wanted or modality.column, ()), (modality.column, modality.listed_columns)):
        for mark, header in headers.items():
            if fitting_names(header, documented, usual):
                return header, mark
    mark = max(headers, key=lambda mark: len(headers[mark]))  # the first of those that make most columns
    return headers[mark], mark


def read_table(path: Path, options: DataConfig, notes: Notes, modality: Modality) -> Iterator[Record]:
    """Yield the rows; `notes` gets what a person should know.

    Cells are quoted as usual in .csv files. In a .tsv file a row is a line, and a quotation mark is only a character,
    except where a cell begins and ends with one. A row that is the header again is passed over, and so is one of images
    whose cells are all empty. Empty cells behind the last named column, as spreadsheets write them, are no cells. Where
    a .csv file of texts has one column, a row is one text, with whatever marks it holds.

    Raises:
        UserError: no such column or several that may hold the contents, no header, a header whose columns stand in
            another order below the first one, a row without a file name, a text in a row of other length than the
            header, or not a text table.
    """
    header, mark = read_header(path, options, modality)
    content, labels = choose_names(header, options, modality, str(path))
    label = labels[0] if labels else None
    if content is None:
        raise UserError(_why_no_column(path, header, mark, options, modality))
    notes.take(column_notes(content, label, header, options, modality))
    notes.split, notes.labels = find_split_column(header, options, str(path), (content, *labels)), labels
    if modality is not IMAGES and len(header) == 1 and suffix_of(path) != "tsv":
        mark = _NO_MARK
    named = len(_without_blanks(header))
    notes.group = find_group_column(header, options, str(path))
    names = (content, notes.split, notes.group)
    content_at, split_at, group_at = (None if name is None else header.index(name) for name in names)
    labels_at = [header.index(name) for name in labels]
    several = isinstance(options.label_key, tuple)
    for line, cells in _rows(path, mark, options, notes):
        if _is_header(path, line, cells, header):
            notes.count(_AGAIN, f"{path.name} line {line}")
            continue
        if modality is IMAGES and len(cells) > 1 and not any(map(str.strip, cells)):
            notes.count(_BLANK, f"{path.name} line {line}")
            continue
        if len(cells) != len(header) and modality is not IMAGES and _odd(cells, named, len(header)):
            raise UserError(
                f"{path} line {line} has {len(cells)} cells, not {len(header)} as the header: quote texts that "
                "hold the separator or a line end."
            )
        if len(cells) > len(header) and len(_without_blanks(cells)) > len(header):
            notes.count(_LONG, f"{path.name} line {line}")
        value = _cell(cells, content_at)
        if not value and modality is IMAGES:
            raise UserError(f"{path} line {line}: no file name in column {content!r}.")
        written = Cells(_cell(cells, at) for at in labels_at)
        labelled = written if several else next(iter(written), None)
        yield Record(line, value or "", labelled, _cell(cells, split_at), _cell(cells, group_at))


def _odd(cells: Sequence[str], named: int, columns: int) -> bool:
    """Whether a row has fewer cells than there are columns with a name, or more that hold something than there are."""
    return len(cells) < named or len(_without_blanks(cells)) > columns


def _without_blanks(cells: Sequence[str]) -> Sequence[str]:
    """The cells up to the last that is not empty."""
    return cells[: max((at for at, cell in enumerate(cells, start=1) if cell.strip()), default=0)]


def _cell(cells: Sequence[str], column: int | None) -> str | None:
    return None if column is None or column >= len(cells) else cells[column].strip() or None


def _is_header(path: Path, line: int, cells: list[str], header: list[str]) -> bool:
    """Whether a row of more than one cell holds the names of the columns."""
    if len(header) < 2 or len(cells) != len(header) or cells[0].strip().lstrip("\ufeff") not in header:
        return False
    names = [cell.strip().lstrip("\ufeff") for cell in cells]
    if names != header and sorted(names) == sorted(header):
        raise UserError(f"{path} line {line} is a header again, with its columns in another order; pass two tables.")
    return names == header


def _rows(path: Path, mark: str, options: DataConfig, notes: Notes) -> Iterator[tuple[int, list[str]]]:
    """(line on which it ends, cells) of each row below the header."""
    lines = _lines(path, options, notes)
    above, _ = next(lines, (1, ""))  # the header
    if suffix_of(path) == "tsv" and mark == "\t":
        yield from (
            (line, list(map(_unquoted, text.rstrip("\r\n").split(mark)))) for line, text in lines if text.strip()
        )
        return
    csv.field_size_limit(LONGEST_LINE)  # characters; else 131,072
    reader = csv.reader((text for _, text in lines), delimiter=mark, skipinitialspace=True)
    try:
        yield from ((reader.line_num + above, cells) for cells in reader if cells)
    except csv.Error as error:
        raise UserError(
            f"{path} near line {reader.line_num + 1 + above} is not a text table: {_why(error)}."
        ) from error


def _lines(path: Path, options: DataConfig, notes: Notes) -> Iterator[tuple[int, str]]:
    """(number, line), from the header on."""
    lines = read_lines(path, "text table", options.encoding, notes.say)
    first = next(lines, None)
    if first is not None and not _EXCEL.fullmatch(first[1].lstrip("\ufeff")):
        yield first[0], first[1].lstrip("\ufeff")  # a mark that was written twice
    yield from lines


def _why(error: csv.Error) -> str:
    said = str(error)
    if "field limit" in said:
        return f"a cell is longer than {LONGEST_LINE:,} characters; look for a quotation mark that is not closed"
    return "its lines end in several ways; save it again" if "new-line" in said else said


def _why_no_column(path: Path, header: list[str], mark: str, options: DataConfig, modality: Modality) -> str:
    """The sentence for a table without a column of contents."""
    if _looks_like_a_row(path, header, mark, options):
        return (
            f"{path} has no header: its first line is a row ({listed(header)}); write the names of the columns above "
            f"it, as {f'{modality.column}{mark}label'!r}."
        )
    if len(header) == 1 and fitting_names(header[0].split(), modality.column, modality.listed_columns):
        return (
            f"{path} has blanks between its columns ({header[0]!r}): separate them by commas, semicolons, tabs or bars."
        )
    said = f"{path} has no column {modality.column!r}; its columns are {listed(header)}: "
    other = other_than(modality)
    if fitting_names(header, other.column, other.listed_columns):
        return f"{said}{modality.otherwise}."
    return (
        f"{said}name the one with the {'image files' if modality is IMAGES else 'texts'} by "
        f"data.{modality.key}=..., or, if this is its first row, write the names of the columns above it."
    )


def _looks_like_a_row(path: Path, header: list[str], mark: str, options: DataConfig) -> bool:
    """Whether the first line names a file, or has a cell that occurs in the rows below it, as a label does."""
    if any(Path(cell).suffix.lower() in IMAGES.suffixes | TEXTS.suffixes for cell in header):
        return True
    below = [row for _, row in islice(_rows(path, mark, options, Notes()), _LOOKED_AT)]
    again = (cell and any(_cell(row, at) == cell for row in below) for at, cell in enumerate(header))
    return len(header) > 1 and any(again)


def _unquoted(cell: str) -> str:
    cell = cell.strip()
    quoted = len(cell) >= 2 and cell[0] == cell[-1] == '"'
    return cell[1:-1].replace('""', '"') if quoted else cell
