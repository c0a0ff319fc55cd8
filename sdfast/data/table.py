"""A .csv file that lists images and, when it has them, their labels."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sdfast.data.config import DataConfig
from sdfast.data.items import SPLITS, Item, Items, Source, split_name
from sdfast.data.labels import compare_classes, encode_labels
from sdfast.errors import UserError

_IMAGE, _LABEL = "file_name", "label"


@dataclass(frozen=True)
class Columns:
    """Where a table keeps its images and labels, and how its cells are separated."""

    header: list[str]
    image: str
    label: str | None
    delimiter: str


def open_csv(path: Path, options: DataConfig, kind: str = "csv", name: str | None = None) -> Source:
    """Open a .csv file: a header with `file_name` and, for labels, `label` (or `image_key` and `label_key`).

    File names are relative to the .csv. When every one of them begins with `train/`, `val/` or `test/` (or another name
    of these splits), they are the splits; else everything is train. Cells are separated by commas, semicolons or tabs.

    Args:
        path: the file.
        options: its columns.
        kind, name: what the source is called, when it is not the file itself.

    Raises:
        UserError: no such column, no rows, a class of test that train lacks, or not a text table.
    """
    rows = list(read_table(path, options))
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


def table_header(path: Path, options: DataConfig) -> Columns | None:
    """The columns of images and labels, or None when the table has no image column.

    Raises:
        UserError: when a column that `options` names is not there, or the file is not a text table.
    """
    header, delimiter = _read_header(path, options)
    for key, wanted in (("image_key", options.image_key), ("label_key", options.label_key)):
        if wanted is not None and wanted not in header:
            raise UserError(f"{path} has no column {wanted!r} (data.{key}); its columns are {_listed(header)}.")
    if (image := options.image_key or _IMAGE) not in header:
        return None
    label = options.label_key or _LABEL
    return Columns(header, image, label if label in header else None, delimiter)


def read_table(path: Path, options: DataConfig) -> Iterator[tuple[str, str | None]]:
    """Yield (file name as written, label or None) of every row.

    Raises:
        UserError: no image column, a row without a file name, or not a text table.
    """
    columns = table_header(path, options)
    if columns is None:
        header, _ = _read_header(path, options)
        raise UserError(
            f"{path} has no column {_IMAGE!r}; its columns are {_listed(header)}: "
            "name the one with the image files by data.image_key=..."
        )
    with open(path, encoding="utf-8-sig", newline="") as file:
        file.readline()  # the header, which table_header has read
        reader = csv.DictReader(file, columns.header, delimiter=columns.delimiter, skipinitialspace=True)
        try:
            for row in reader:
                name = (row[columns.image] or "").strip()
                if not name:
                    raise UserError(f"{path} line {reader.line_num + 1}: no file name in column {columns.image!r}.")
                label = (row[columns.label] or "").strip() if columns.label else ""
                yield name, label or None
        except (csv.Error, UnicodeDecodeError) as error:
            raise UserError(f"{path} near line {reader.line_num + 2} is not a UTF-8 text table: {error}.") from error


def _read_header(path: Path, options: DataConfig) -> tuple[list[str], str]:
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            line = file.readline()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not a UTF-8 text table: {error}.") from error
    wanted = options.image_key or _IMAGE
    headers = {mark: [cell.strip() for cell in next(csv.reader([line], delimiter=mark), [])] for mark in ",;\t"}
    delimiter = next((mark for mark, header in headers.items() if wanted in header), ",")
    return headers[delimiter], delimiter


def _listed(header: list[str]) -> str:
    return ", ".join(repr(name) for name in header[:10]) or "none"


def _portable(name: str, base: Path) -> str:
    """The name without an absolute part: below `base` as it is, elsewhere only its last part."""
    if not os.path.isabs(name):
        return Path(name).as_posix()
    relative = Path(os.path.relpath(name, base))
    return relative.as_posix() if ".." not in relative.parts else relative.name
