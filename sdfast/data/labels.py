"""Class names and class numbers from whatever a source calls its labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from sdfast.data.items import Source
from sdfast.errors import UserError

Value = str | int | float | bool | None


def encode_labels(values: Mapping[str, Sequence[Value]]) -> tuple[list[str] | None, dict[str, list[int | None]]]:
    """Number the distinct labels of all splits together.

    The class names are the labels as text, sorted: by value when every one is a number (so "10" follows "9", and labels
    0..n-1 keep their numbers), else as text. None, NaN and "" are missing; so is -1 when every label is an integer, as
    hidden test labels are written in public data sets.

    Args:
        values: per split, one label per item.

    Returns:
        names: the classes in order, or None when no item has a label.
        numbers: per split, one class number per item, or None where the label is missing.
    """
    texts = {split: [_text(value) for value in column] for split, column in values.items()}
    distinct = {text for column in texts.values() for text in column if text is not None}
    if all(_is_integer(text) for text in distinct):
        distinct.discard("-1")
    if not distinct:
        return None, {split: [None] * len(column) for split, column in texts.items()}
    numeric = all(_is_number(text) for text in distinct)
    names = sorted(distinct, key=lambda text: (float(text), text) if numeric else (0.0, text))
    number = {name: index for index, name in enumerate(names)}
    return names, {split: [_lookup(number, text) for text in column] for split, column in texts.items()}


def number_labels(
    values: Mapping[str, Sequence[Value]], class_names: Sequence[str] | None, where: str
) -> tuple[list[str] | None, dict[str, list[int | None]]]:
    """Class numbers of all splits: those of a `ClassLabel` column as they are, others by `encode_labels`.

    Args:
        values: per split, one label per item.
        class_names: of the `ClassLabel`, or None.
        where: for the sentence.

    Raises:
        UserError: when a number of a `ClassLabel` has no name.
    """
    if class_names is None:
        return encode_labels(values)
    numbers = {
        split: check_labels(
            [None if value is None else int(value) for value in column], class_names, f"{where} ({split})"
        )
        for split, column in values.items()
    }
    return list(class_names), numbers


def check_labels(labels: Sequence[int | None], names: Sequence[str], where: str) -> list[int | None]:
    """Class numbers that already count into `names`; negative ones are missing.

    Raises:
        UserError: when a number has no name.
    """
    for row, label in enumerate(labels):
        if label is not None and label >= len(names):
            raise UserError(f"{where}: row {row} has label {label}, but only {len(names)} classes have a name.")
    return [None if label is None or label < 0 else int(label) for label in labels]


def compare_classes(source: Source, strict: bool) -> None:
    """Compare the classes that occur in train with those of the held-out splits; differences become warnings.

    Args:
        source: with its splits; the warnings are added to it.
        strict: a class of val or test that train lacks is an error (in files that a person has named).

    Raises:
        UserError: see `strict`.
    """
    names, an_item, many = source.class_names, source.modality.an_item, source.modality.many
    if names is None or "train" not in source.splits:
        return
    trained = {label for label in source.splits["train"].labels if label is not None}
    for split in ("val", "test"):
        held_out = (
            {label for label in source.splits[split].labels if label is not None} if split in source.splits else set()
        )
        if not trained or not held_out:
            continue
        if unknown := sorted(names[label] for label in held_out - trained):
            what = f"Classes of {split} that train lacks: {len(unknown)} (the first: {unknown[0]!r})"
            if strict:
                raise UserError(f"{source.name}: {what[0].lower()}{what[1:]}; rename the class or remove its {many}.")
            source.warnings.append(f"{what}.")
        if absent := sorted(names[label] for label in trained - held_out):
            source.warnings.append(
                f"Classes of train without {an_item} in {split}: {len(absent)} (the first: {absent[0]!r})."
            )


def _lookup(number: Mapping[str, int], text: str | None) -> int | None:
    return None if text is None else number.get(text)


def _text(value: Value) -> str | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    return str(value).strip() or None


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False


def _is_integer(text: str) -> bool:
    try:
        int(text)
    except ValueError:
        return False
    return True
