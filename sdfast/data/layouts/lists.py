"""The text files of a published data set that list its images, and the items that they name."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from sdfast.data.items import Item, Items, file_reader
from sdfast.data.lines import read_lines
from sdfast.errors import UserError


def read_pairs(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield (line, first word, what follows it) of each line that is not blank.

    Raises:
        UserError: no such file, one that is not UTF-8, or a line of a single word.
    """
    for line, text in read_listed(path):
        first, _, rest = text.partition(" ")
        if not rest.strip():
            raise UserError(f"{path} line {line} is one word, not two; unpack the archive again.")
        yield line, first, rest.strip()


def read_listed(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, text without blanks around it) of each line that is not blank.

    Raises:
        UserError: no such file, or one that is not UTF-8.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; unpack the whole archive again.")
    for line, text in read_lines(path):
        if text.strip():
            yield line, text.strip()


def image_items(root: Path, rows: Sequence[tuple[str, int]], listed_by: Path, banner: int = 0) -> Items:
    """The items of listed images.

    Args:
        root: what their names are relative to.
        rows: name ('/' between folders) and class number of each, in order.
        listed_by: the file that names them, for the sentence.
        banner: see `Item`.

    Raises:
        UserError: none is listed, or a listed one is not there.
    """
    if not rows:
        raise UserError(f"{listed_by} names no images; unpack the archive again.")
    if missing := _missing(root, (name for name, _ in rows)):
        raise UserError(
            f"{listed_by} names images that are not in {root}: {len(missing):,} of {len(rows):,} (the first: "
            f"{missing[0]}); unpack the whole archive again."
        )
    return Items(Item(name, label, file_reader(root / name), banner) for name, label in rows)


def _missing(root: Path, names: Iterable[str]) -> list[str]:
    """Those that do not exist; each folder is read once."""
    there: dict[str, set[str]] = {}
    missing = []
    for name in names:
        folder, _, file = name.rpartition("/")
        if folder not in there:
            there[folder] = set(os.listdir(root / folder)) if (root / folder).is_dir() else set()
        if file not in there[folder]:
            missing.append(name)
    return missing
