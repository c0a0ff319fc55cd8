"""Whose row it is (`data.group`): a patient's, a photographer's, a video's; by a column, or by a pattern of names."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from sdfast.data.config import DataConfig
from sdfast.data.items import Source
from sdfast.data.labels import NA_LABELS, class_key
from sdfast.errors import UserError

_SHOWN = 60  # characters of a name in a sentence


def read_pattern(text: str, otherwise: str) -> re.Pattern[str]:
    """The regular expression that `data.group` gives, which has one capturing group.

    Args:
        text: the expression.
        otherwise: the beginning of the sentence that refuses it: what else it might have been, and is not.

    Raises:
        UserError: it is none, or has no such group, or several.
    """
    try:
        pattern = re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise UserError(f"{otherwise}, and data.group={text} is no regular expression either: {error}.") from error
    if pattern.groups != 1:
        has = "no capturing group" if not pattern.groups else f"{pattern.groups} capturing groups"
        raise UserError(
            f"{otherwise}; to be a pattern of the names, data.group={text} needs one capturing group and has {has}: put"
            r" brackets around what names the group, as in '(patient\d+)_', and write others as '(?:...)'."
        )
    return pattern


def group_names(
    cells: Mapping[str, Sequence[object]], where: str, options: DataConfig, say: Callable[[str], object]
) -> dict[str, list[str | None]]:
    """The groups that a column says, by split; None for an empty cell.

    The spellings of one number are one group (see `class_key`). Where `data.na_labels` is "missing", so are the words
    that pandas takes for missing.

    Args:
        cells: of the column, for each split of the files.
        where: they are, for sentences.
        options: the `data` section.
        say: is told which words were taken for missing.

    Raises:
        UserError: a cell that is neither a text nor a number, or no cell that says a group.
    """
    texts = {split: [_text(cell, where, options) for cell in column] for split, column in cells.items()}
    words = Counter(text for column in texts.values() for text in column if text in NA_LABELS)
    empty = set(words) if options.na_labels == "missing" else set()
    if empty:
        say(
            f"Cells of data.group={options.group} in {where} that are read as missing ({', '.join(sorted(empty))}): "
            f"{words.total():,}; data.na_labels=class takes such words for groups."
        )
    found = {
        split: [None if text is None or text in empty else class_key(text) for text in column]
        for split, column in texts.items()
    }
    if not any(group is not None for column in found.values() for group in column):
        raise UserError(f"{where}: every cell of column {options.group!r} (data.group) is empty; choose another.")
    return found


def find_groups(source: Source, options: DataConfig) -> None:
    """Give the items of a source their groups where a pattern says them, and say how many there are.

    Raises:
        UserError: `data.group` is no pattern and the source has no columns, or no name has what it looks for.
    """
    if options.group is None:
        return
    plural, by = source.modality.plural, f"column {options.group!r}"
    if all(items.groups is None for items in source.splits.values()):
        no_columns = f"{source.name} ({source.kind}) has no column {options.group!r}"
        pattern, by = read_pattern(options.group, no_columns), f"the pattern {options.group} of the names"
        first = ""
        for items in source.splits.values():
            items.groups = []
            for item in items:
                first = first or item.name
                match = pattern.search(item.name)
                items.groups.append((match[1] or None) if match else None)
        if not any(group is not None for items in source.splits.values() for group in items.groups or ()):
            raise UserError(
                f"{source.name}: the pattern data.group={options.group} is in none of the {plural}' names (the first: "
                f"{first[:_SHOWN]}), and no column is called so."
            )
    sizes = Counter(group for items in source.splits.values() for group in items.groups or ())
    missing = sizes.pop(None, 0)
    largest, rows = sizes.most_common(1)[0]
    alone = f"; without one: {missing:,}, each a group of its own" if missing else ""
    source.warnings.append(
        f"The {plural} of {source.name} are grouped by {by}: {sizes.total():,} in {len(sizes):,} groups, at most "
        f"{rows:,} in one ({largest[:_SHOWN] if largest else ''}){alone}."
    )


def _text(cell: object, where: str, options: DataConfig) -> str | None:
    """A cell as text, without white space around it; None where it is missing: None, NaN, ""."""
    if cell is None or (isinstance(cell, float) and cell != cell):
        return None
    if isinstance(cell, (list, tuple, dict, bytes)):
        kind = {dict: "an object", bytes: "bytes"}.get(type(cell), "a list")
        raise UserError(
            f"{where}: a cell of column {options.group!r} (data.group) is {kind}, but a group is a text or a number; "
            "choose another column."
        )
    return str(cell).strip() or None
