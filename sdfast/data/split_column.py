"""A column of a table that says which split each row belongs to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

from sdfast.data.column_names import listed
from sdfast.data.config import NO_COLUMN, DataConfig
from sdfast.data.items import SPLITS, ChosenItems, Source, split_name
from sdfast.errors import UserError

_USUAL = ("split", "set", "subset", "partition", "fold")  # names of such a column, in this order
_FEW = 3  # values in a sentence
_MORE_NAMES = {
    **dict.fromkeys(("development", "eval", "evaluation"), "val"),
    **dict.fromkeys(("holdout", "hold-out", "held-out"), "test"),
}


def split_of_value(value: object) -> str | None:
    """The split that a cell stands for: "train", "val", "test", or None when it names none.

    Those are the names of `split_name`, and development, eval, evaluation, holdout and held-out, in any case.
    """
    if not isinstance(value, str):
        return None
    name = value.strip().lower()
    return split_name(name) or _MORE_NAMES.get(name.replace("_", "-"))


def find_split_column(
    names: Sequence[str], options: DataConfig, where: str, taken: Collection[str | None]
) -> str | None:
    """The column that may say the split of each row: that of `data.split_key`, or the first of the usual names.

    Args:
        names: of all columns.
        options: its `split_key`; "none" looks for none.
        where: for the sentence.
        taken: the columns of contents and labels, which it is not.

    Raises:
        UserError: there is no column of the name that `split_key` gives.
    """
    wanted = options.split_key
    if wanted is not None and wanted in names:
        return wanted
    if wanted == NO_COLUMN:
        return None
    if wanted is not None:
        raise UserError(f"{where} has no column {wanted!r} (data.split_key); its columns are {listed(names)}.")
    free = {name.strip().lower(): name for name in reversed(names) if name not in taken}
    return next((free[name] for name in _USUAL if name in free), None)


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
        options: its `split_key`.

    Raises:
        UserError: values that name no split beside others that do, two names for one split, or files that disagree.
    """
    if column is None:
        return
    counts = Counter(value for cells in values.values() for value in map(_shown, cells))
    unknown = [shown for shown in counts if split_of_value(shown) is None]
    asked = options.split_key == column
    if len(unknown) == len(counts) and not asked:
        if column.strip().lower() == _USUAL[0]:
            source.warnings.append(
                f"The column {column!r} of {source.name} is not used: its values ({_listed(unknown)}) are no names of "
                "splits (train, val, test)."
            )
        return
    ignored = f"set data.split_key={NO_COLUMN} to ignore the column" if not asked else "choose another data.split_key"
    if unknown:
        rows = sum(counts[shown] for shown in unknown)
        raise UserError(
            f"{source.name}: {rows:,} of {counts.total():,} rows have no split in column {column!r} (values "
            f"{_listed(unknown)}): write train, val or test there, remove the rows, or {ignored}."
        )
    _check_names(source, column, list(counts), ignored)
    found = {part: [split_of_value(_shown(cell)) for cell in cells] for part, cells in values.items()}
    if not asked and set(found) != {"train"}:
        _check_agreement(source, column, found)
    _divide(source, found)
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


def _divide(source: Source, found: Mapping[str, Sequence[str | None]]) -> None:
    whole = source.splits
    rows = [(split, (part, row)) for part in whole for row, split in enumerate(found[part])]
    divided = {split: [row for each, row in rows if each == split] for split in SPLITS}
    if any(part != split for split, chosen in divided.items() for part, _ in chosen):
        source.splits = {split: ChosenItems(whole, chosen) for split, chosen in divided.items() if chosen}


def _shown(cell: object) -> str:
    return "" if cell is None else str(cell).strip()


def _listed(values: Sequence[str]) -> str:
    more = f" and {len(values) - _FEW:,} more" if len(values) > _FEW else ""
    return ", ".join(repr(value) for value in values[:_FEW]) + more
