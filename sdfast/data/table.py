"""A table of comma separated values that lists images or holds texts and, when it has them, their labels."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sdfast.data.config import DataConfig
from sdfast.data.items import SPLITS, Item, Items, Source, split_name
from sdfast.data.labels import compare_classes, encode_labels
from sdfast.data.lines import read_lines
from sdfast.data.modality import IMAGES, Modality
from sdfast.errors import UserError

_LABEL = "label"
_LONGEST_CELL = 1 << 30  # characters; the csv module refuses more than 131,072 when not told


@dataclass(frozen=True)
class Columns:
    """Where a table keeps its images or texts and its labels, and how its cells are separated."""

    header: list[str]
    content: str
    label: str | None
    delimiter: str


def open_csv(path: Path, options: DataConfig, kind: str = "csv", name: str | None = None) -> Source:
    """Open a .csv file that lists images.

    Its header has `file_name` and, for labels, `label` (or what `image_key` and `label_key` say).
    File names are relative to the .csv. When every one of them begins with `train/`, `val/` or `test/` (or another name
    of these splits), they are the splits; else everything is train. Cells are separated by commas, semicolons or tabs.

    Args:
        path: the file.
        options: its columns.
        kind, name: what the source is called, when it is not the file itself.

    Raises:
        UserError: no such column, no rows, a class of test that train lacks, or not a text table.
    """
    rows = [(file, label) for _, file, label in read_table(path, options, IMAGES)]
    if not rows:
        raise UserError(f"{path} lists no images.")
    parts = [split_name(file.split("/")[0]) if "/" in file else None for file, _ in rows]
    splits = [part or "train" for part in parts] if None not in parts else ["train"] * len(rows)
    grouped = {split: [row for row, part in zip(rows, splits, strict=True) if part == split] for split in SPLITS}
    grouped = {split: group for split, group in grouped.items() if group}
    names, numbers = encode_labels({split: [label for _, label in group] for split, group in grouped.items()})
    source = Source(name or path.name, kind, names, {})
    for split, group in grouped.items():
        source.splits[split] = Items(
            Item(_portable(file, path.parent), label, (path.parent / file).read_bytes)
            for (file, _), label in zip(group, numbers[split], strict=True)
        )
    compare_classes(source, strict=True)
    return source


def table_header(path: Path, options: DataConfig, modality: Modality) -> Columns | None:
    """The columns of contents and labels, or None when the table has no column of contents.

    Raises:
        UserError: when a column that `options` names is not there, or the file is not a text table.
    """
    wanted: str | None = getattr(options, modality.key)
    header, delimiter = _read_header(path, wanted or modality.column)
    for key, name in ((modality.key, wanted), ("label_key", options.label_key)):
        if name is not None and name not in header:
            raise UserError(f"{path} has no column {name!r} (data.{key}); its columns are {_listed(header)}.")
    if (content := wanted or modality.column) not in header:
        return None
    label = options.label_key or _LABEL
    return Columns(header, content, label if label in header else None, delimiter)


def read_table(path: Path, options: DataConfig, modality: Modality) -> Iterator[tuple[int, str, str | None]]:
    """Yield (line, file name or text as written, label or None) of every row.

    Cells are quoted as usual in .csv files. In a .tsv file a row is a line, and a quotation mark is only a character,
    except where a cell begins and ends with one.

    Raises:
        UserError: no such column, a row without a file name, a text in a row of other length than the header, or not a
            text table.
    """
    columns = table_header(path, options, modality)
    if columns is None:
        header, _ = _read_header(path, modality.column)
        what = "image files" if modality is IMAGES else "texts"
        raise UserError(
            f"{path} has no column {modality.column!r}; its columns are {_listed(header)}: "
            f"name the one with the {what} by data.{modality.key}=..."
        )
    content = columns.header.index(columns.content)
    label = columns.header.index(columns.label) if columns.label is not None else None
    for line, cells in _rows(path, columns):
        if len(cells) != len(columns.header) and modality is not IMAGES:
            raise UserError(
                f"{path} line {line} has {len(cells)} cells, not {len(columns.header)} as the header: quote texts that "
                "hold the separator or a line end."
            )
        value = cells[content].strip() if len(cells) > content else ""
        if not value and modality is IMAGES:
            raise UserError(f"{path} line {line}: no file name in column {columns.content!r}.")
        yield line, value, (cells[label].strip() or None) if label is not None and len(cells) > label else None


def _rows(path: Path, columns: Columns) -> Iterator[tuple[int, list[str]]]:
    """(line on which it ends, cells) of each row below the header."""
    lines = read_lines(path, "text table")
    next(lines)  # the header, which table_header has read
    if _is_tsv(path):
        for line, text in lines:
            if text.strip():
                yield line, [_unquoted(cell) for cell in text.rstrip("\r\n").split("\t")]
        return
    csv.field_size_limit(_LONGEST_CELL)
    reader = csv.reader((text for _, text in lines), delimiter=columns.delimiter, skipinitialspace=True)
    try:
        for cells in reader:
            if cells:
                yield reader.line_num + 1, cells
    except csv.Error as error:
        raise UserError(f"{path} near line {reader.line_num + 2} is not a UTF-8 text table: {error}.") from error


def _read_header(path: Path, wanted: str) -> tuple[list[str], str]:
    _, line = next(read_lines(path, "text table"), (0, ""))
    marks = "\t" if _is_tsv(path) else ",;\t"
    headers = {mark: [cell.strip() for cell in next(csv.reader([line], delimiter=mark), [])] for mark in marks}
    delimiter = next((mark for mark, header in headers.items() if wanted in header), marks[0])
    return headers[delimiter], delimiter


def _is_tsv(path: Path) -> bool:
    return path.name.lower().removesuffix(".gz").endswith(".tsv")


def _unquoted(cell: str) -> str:
    cell = cell.strip()
    quoted = len(cell) >= 2 and cell[0] == cell[-1] == '"'
    return cell[1:-1].replace('""', '"') if quoted else cell


def _listed(header: list[str]) -> str:
    return ", ".join(repr(name) for name in header[:10]) or "none"


def _portable(name: str, base: Path) -> str:
    """The name without an absolute part: below `base` as it is, elsewhere only its last part."""
    if not os.path.isabs(name):
        return Path(name).as_posix()
    relative = Path(os.path.relpath(name, base))
    return relative.as_posix() if ".." not in relative.parts else relative.name
