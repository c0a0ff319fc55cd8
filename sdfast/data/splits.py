"""Which rows belong to which split: by the names of a source's files, or by a column that says so."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from sdfast.data.config import NO_COLUMN, DataConfig
from sdfast.data.items import SPLITS, Source, chosen_items
from sdfast.data.modality import first_listed
from sdfast.errors import UserError

USUAL_SPLIT_COLUMNS = ("split", "set", "subset", "partition", "fold")  # names of such a column, in this order
_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "validation", "dev", "valid"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_MORE_NAMES = {  # in a column alone: as names of folders and files they are other things, too
    **dict.fromkeys(("development", "eval", "evaluation"), "val"),
    **dict.fromkeys(("holdout", "hold-out", "held-out"), "test"),
}
_FILE_PREFIX = re.compile(r"([a-zA-Z]+)(?:[-_.]|$)")


def split_name(name: str) -> str | None:
    """The split that a folder, file prefix or data set split of this name stands for, or None."""
    return _NAMES.get(name.lower())


def split_of_file(name: str) -> str | None:
    """The split of a file, by its own name (`train.jsonl`, `test-00000-of-00001.parquet`) or by the nearest folder's.

    The name is relative to the source, with '/' between folders.
    """
    found = (split_name(match[1]) for part in reversed(name.split("/")) if (match := _FILE_PREFIX.match(part)))
    return next(filter(None, found), None)


def split_of_value(value: object) -> str | None:
    """The split that a cell stands for: "train", "val", "test", or None when it names none.

    Those are the names of `split_name`, and development, eval, evaluation, holdout and held-out, in any case.
    """
    if not isinstance(value, str):
        return None
    name = value.strip().lower()
    return split_name(name) or _MORE_NAMES.get(name.replace("_", "-"))


def files_by_split(root: Path, files: Sequence[Path], source: Source) -> dict[str, list[tuple[Path, str]]]:
    """The files of each split and their names in messages, splits in their usual order; the source gets the warnings.

    Files whose name (or folder) says train, val or test are these splits, and others beside them are not used; where no
    name says so, everything is train. So is `root`, what was opened, when it is itself the only file.
    """
    if not root.is_dir():
        return {"train": [(root, root.name)]}
    names = [file.relative_to(root).as_posix() for file in files]
    splits = [split_of_file(name) for name in names]
    if not any(splits):
        splits = ["train"] * len(files)
    elif unused := [name for name, split in zip(names, splits, strict=True) if split is None]:
        source.warnings.append(f"Files that name no split and are not used: {len(unused)} (the first: {unused[0]}).")
    found = list(zip(splits, files, names, strict=True))
    return {split: [(file, name) for part, file, name in found if part == split] for split in SPLITS if split in splits}


def use_split_column(
    source: Source, column: str | None, values: Mapping[str, Sequence[object]], options: DataConfig
) -> None:
    """Give `source` the splits that a column says, when it says some; a sentence in its warnings tells so.

    A column that was found by its usual name is passed over when none of its values is the name of a split. Where the
    names of the files are splits themselves the column has to agree, except that files which are all train, which is
    also what a whole is called, are divided by it; a column of `data.split_key` decides in any case.

    Args:
        source: with the splits that the files give, and the labels of their items; before its classes are compared.
        column: its name, or None for none.
        values: the column's, per split of the files, one for each item.

    Raises:
        UserError: values that name no split beside others that do, two names for one split, or files that disagree.
    """
    if column is None:
        return
    shown = {part: ["" if cell is None else str(cell).strip() for cell in cells] for part, cells in values.items()}
    counts = Counter(value for cells in shown.values() for value in cells)
    unknown = [value for value in counts if split_of_value(value) is None]
    asked = options.split_key == column
    if len(unknown) == len(counts) and not asked:
        if column.strip().lower() == USUAL_SPLIT_COLUMNS[0]:
            source.warnings.append(
                f"The column {column!r} of {source.name} is not used: its values ({first_listed(unknown)}) are no "
                "names of splits (train, val, test)."
            )
        return
    ignored = f"set data.split_key={NO_COLUMN} to ignore the column" if not asked else "choose another data.split_key"
    if unknown:
        rows = sum(counts[value] for value in unknown)
        raise UserError(
            f"{source.name}: {rows:,} of {counts.total():,} rows have no split in column {column!r} (values "
            f"{first_listed(unknown)}): write train, val or test there, remove the rows, or {ignored}."
        )
    _check_names(source, column, list(counts), ignored)
    found = {part: list(map(split_of_value, cells)) for part, cells in shown.items()}
    if not asked and set(found) != {"train"}:
        _check_agreement(source, column, found)
    whole = source.splits
    rows_of = {
        split: [(part, row) for part in whole for row, each in enumerate(found[part]) if each == split]
        for split in SPLITS
    }
    if any(part != split for split, chosen in rows_of.items() for part, _ in chosen):
        source.splits = {split: chosen_items(whole, chosen) for split, chosen in rows_of.items() if chosen}
    said = ", ".join(f"{split} {len(items):,}" for split, items in source.splits.items())
    source.warnings.append(f"The splits of {source.name} are those of its column {column!r}: {said}.")


def _check_names(source: Source, column: str, values: list[str], ignored: str) -> None:
    first: dict[str | None, str] = {}
    for value in sorted(values):
        other = first.setdefault(split_of_value(value), value)
        if other.lower() != value.lower():
            raise UserError(
                f"{source.name}: column {column!r} holds {other!r} and {value!r}, which are both "
                f"{split_of_value(value)}; write one of them for all, or {ignored}."
            )


def _check_agreement(source: Source, column: str, found: Mapping[str, Sequence[str | None]]) -> None:
    for part, splits in found.items():
        if other := next((split for split in splits if split != part), None):
            raise UserError(
                f"{source.name}: column {column!r} puts {splits.count(other):,} rows of the {part} files in {other}; "
                f"set data.split_key={column} to go by the column, or data.split_key={NO_COLUMN} to go by the files."
            )
