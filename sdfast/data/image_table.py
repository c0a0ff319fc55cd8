"""A table that lists images: their files, and what the names of these are not allowed to be."""

from __future__ import annotations

import os
import re
from pathlib import Path

from sdfast.data.config import DataConfig
from sdfast.data.items import SPLITS, Item, Items, Source, file_reader
from sdfast.data.modality import IMAGES
from sdfast.data.records import Notes, Record, Rows
from sdfast.data.splits import split_name
from sdfast.data.table import read_table
from sdfast.errors import UserError
from sdfast.regular import is_there

_ADDRESS = re.compile(r"([a-z][a-z0-9+.-]+)://", re.IGNORECASE)  # a drive, as C:\, has one letter
_LOOKED_AT = 100  # rows by which names that are no files are told from files that are missing
_MOST_FILES = 100_000
_SLASHES = "File names with backslashes, which are read as slashes"


def open_csv(path: Path, options: DataConfig, kind: str = "csv", name: str | None = None) -> Source:
    """Open a .csv or .tsv file that lists images.

    Its header has `file_name` and, for labels, `label` (or what `image_key` and `label_key` say, or another usual
    name). File names are relative to the file; they may lead out of its folder, as the file is the user's own. A column
    of splits divides the rows (see `use_split_column`). Without one, when every name begins with `train/`, `val/` or
    `test/` (or another name of these splits), they are the splits; else everything is train. Cells are separated by
    commas, semicolons, tabs or bars.

    Args:
        path: the file.
        options: its columns and encoding.
        kind, name: what the source is called, when it is not the file itself.

    Raises:
        UserError: no such column, no rows, web addresses, a class of test that train lacks, or not a text table.
    """
    notes = Notes()
    rows = [(image_file(row, path, notes), row) for row in read_table(path, options, notes, IMAGES)]
    if not rows:
        raise UserError(f"{path} lists no images.")
    _check_first_names([(file, row.line) for file, row in rows[:_LOOKED_AT]], path)
    parts = [split_name(file.split("/")[0]) if "/" in file else None for file, _ in rows]
    splits = [part or "train" for part in parts] if None not in parts else ["train"] * len(rows)
    found = Rows(column=notes.split)
    files: dict[str, list[str]] = {}
    for split in (split for split in SPLITS if split in splits):
        group = [row for row, part in zip(rows, splits, strict=True) if part == split]
        files[split] = [file for file, _ in group]
        found.add(split, [row.label for _, row in group], [row.split for _, row in group])
    source = Source(name or path.name, kind, None, {})
    notes.add_to(source)

    def items(split: str, labels: list[int | None]) -> Items:
        named = zip(files[split], labels, strict=True)
        return Items(
            Item(_portable(file, path.parent), label, file_reader(path.parent / file)) for file, label in named
        )

    return found.fill(source, items, options, unseen=None)


def image_file(row: Record, table: Path, notes: Notes) -> str:
    """The name of a row's file, relative to the table's folder or absolute.

    A backslash is a slash where no file has the name with it and one has the name with slashes.

    Raises:
        UserError: a web address.
    """
    name = row.content
    if address := _ADDRESS.match(name):
        where = f"{table} line {row.line} names {name[:80]}"
        if address[1].lower() == "file":
            raise UserError(f"{where}: write the path alone, without file://.")
        raise UserError(f"{where}, which is an address and no file: download the images, and name the files.")
    if "\\" in name and not is_there(table.parent / name):
        slashes = name.replace("\\", "/")
        if is_there(table.parent / slashes):
            notes.count(_SLASHES, name)
            return slashes
    return name


def _check_first_names(names: list[tuple[str, int]], table: Path) -> None:
    """Say what is amiss where no first row names a file, but one is called so with a suffix, capitals or a folder.

    Raises:
        UserError: that is so.
    """
    if any(is_there(table.parent / name) for name, _ in names):
        return
    wanted = {_stem(name): (name, line) for name, line in reversed(names)}
    looked_at = 0
    for where, folders, files in os.walk(table.parent):
        folders.sort()
        for file in sorted(files):
            if (found := wanted.get(_stem(file))) and Path(file).suffix.lower() in IMAGES.suffixes:
                there = (Path(where) / file).relative_to(table.parent).as_posix()
                raise UserError(
                    f"{table} line {found[1]} names {found[0]!r}, which is no file, while {there} is: write names as "
                    "the files have them, with folder, suffix and capitals, relative to the table."
                )
        looked_at += len(files)
        if looked_at > _MOST_FILES:
            return


def _stem(name: str) -> str:
    """A file's name without folder, suffix and capitals."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1].casefold()
    stem, suffix = os.path.splitext(last)
    return stem if suffix in IMAGES.suffixes else last


def _portable(name: str, base: Path) -> str:
    """The name without an absolute part: below `base` as it is, elsewhere only its last part."""
    if not os.path.isabs(name):
        return Path(name).as_posix()
    relative = Path(os.path.relpath(name, base))
    return relative.as_posix() if ".." not in relative.parts else relative.name
