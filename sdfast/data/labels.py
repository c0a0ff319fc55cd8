"""Class names and class numbers from whatever a source calls its labels."""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from itertools import chain
from typing import Any, Literal

import numpy as np

from sdfast.data.items import Source, chosen_items
from sdfast.data.modality import first_listed
from sdfast.data.problem import REGRESSION, Label
from sdfast.errors import UserError

Value = Any  # a text, a number, true or false, or None; what a source may hold besides is refused by `label_text`
Unseen = Literal["error", "drop"]
NaLabels = Literal["missing", "class"]

NA_LABELS = frozenset(  # labels that say there is none, as pandas reads them in a table
    (
        *("#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>"),
        *("N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"),
    )
)
_NOT_A_NUMBER = ("nan", "<na>")  # as text, in small letters, among numbers
_DECIMAL = re.compile(r"([+-]?)(?=\.?[0-9])(0|[1-9][0-9]*)?(?:\.([0-9]*))?")
_SHOWN = 40  # characters of a label in a sentence


def label_text(value: Value, where: str = "") -> str | None:
    """A label as text, without white space around it; None when it is missing: None, NaN, "".

    Raises:
        UserError: neither a text, a number, nor true or false; `where` begins the sentence.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or (isinstance(value, (float, Decimal)) and math.isnan(value)):
        return None
    if not isinstance(value, (str, bool, int, float, Decimal)):
        raise UserError(
            f"{where}{': ' if where else ''}a label is {_kind(value)} ({repr(value)[:_SHOWN]}), but each row has one "
            "class, a text or a number; lists are several where data.problem_type=multi_label_classification. Choose "
            "another column by data.label_key, or data.label_key=none to go without labels."
        )
    return str(value).strip() or None


def class_key(name: str) -> str:
    """What the spellings of one class have in common: 0, 0.0 and "0.00"; true and "TRUE"; a letter with its accent.

    Other names are their own key, in Unicode's normal form C; "01" is another class than "1".
    """
    name = unicodedata.normalize("NFC", name).strip("\ufeff\u200b")
    if name.lower() in ("true", "false"):
        return name.lower()
    match = _DECIMAL.fullmatch(name)
    if match is None:
        return name
    sign, whole, fraction = (group or "" for group in match.groups())
    number = ".".join(part for part in (whole or "0", fraction.rstrip("0")) if part)
    return f"-{number}" if sign == "-" and number != "0" else number


def encode_labels(
    values: Mapping[str, Sequence[Value]],
    where: str = "",
    na_labels: NaLabels = "missing",
    say: Callable[[str], object] = lambda sentence: None,
) -> tuple[list[str] | None, dict[str, list[int | None]]]:
    """Number the distinct labels of all splits together.

    The class names are the labels as text, sorted: by value when every one is a number (so "10" follows "9", and labels
    0..n-1 keep their numbers), else as text. A class that is spelled in several ways (see `class_key`) has its key for
    its name. Missing labels are those of `label_text`; so is -1 when every other one is an integer, as hidden test
    labels are written in public data sets.

    Args:
        values: the labels of each split.
        where: they are, for sentences.
        na_labels: "missing": `NA_LABELS` are no label; "class": they are classes as other words are. "nan" in any
            capitals is no label in both cases when every other one is a number.
        say: is told which of them were met, and which classes are spelled in several ways, in a sentence each.

    Returns:
        names: the classes in order, or None when no item has a label.
        numbers: per split, one class number per item, or None where the label is missing.

    Raises:
        UserError: see `label_text`.
    """
    texts = {split: [label_text(value, where) for value in column] for split, column in values.items()}
    distinct = {text for column in texts.values() for text in column if text is not None}
    keys = {text: class_key(text) for text in distinct}
    empty = distinct & NA_LABELS if na_labels == "missing" else set()
    words = {text for text, key in keys.items() if not _is_number(key)} - empty
    if all(text.lower() in _NOT_A_NUMBER for text in words):
        empty |= words
    keys = {text: key for text, key in keys.items() if text not in empty}
    if empty:
        say(_missing(sorted(empty), sum(text in empty for column in texts.values() for text in column), where))
    if all(_is_integer(key) for key in keys.values()):
        keys = {text: key for text, key in keys.items() if key != "-1"}
    spellings: dict[str, list[str]] = {}
    for text, key in keys.items():
        spellings.setdefault(key, []).append(text)
    name_of = {key: found[0] if len(found) == 1 else key for key, found in spellings.items()}
    if several := sorted((name_of[key], sorted(found)) for key, found in spellings.items() if len(found) > 1):
        name, found = several[0]
        say(
            f"Classes{f' of {where}' if where else ''} that are spelled in several ways: {len(several)} (the first: "
            f"{first_listed(found)} are {name!r})."
        )
    numeric = all(_is_number(name) for name in name_of.values())
    names = sorted(name_of.values(), key=lambda name: (float(name), name) if numeric else (0.0, name))
    number = {name: index for index, name in enumerate(names)}
    known: dict[str | None, int] = {text: number[name_of[key]] for text, key in keys.items()}
    return names or None, {split: [known.get(text) for text in column] for split, column in texts.items()}


def number_labels(
    values: Mapping[str, Sequence[Value]],
    class_names: Sequence[str] | None,
    where: str,
    na_labels: NaLabels = "missing",
    say: Callable[[str], object] = lambda sentence: None,
) -> tuple[list[str] | None, dict[str, list[int | None]]]:
    """Class numbers of all splits: those of a `ClassLabel` with `class_names` as they are, others by `encode_labels`.

    Raises:
        UserError: when a number of a `ClassLabel` has no name, or a label is none (see `label_text`).
    """
    if class_names is None:
        return encode_labels(values, where, na_labels, say)
    if odd := sorted(NA_LABELS.intersection(class_names)) if na_labels == "missing" else []:
        say(f"{where} has a class called {odd[0]!r}, as a missing label may be written: its rows are trained on.")
    numbers = {}
    for split, column in values.items():
        here = f"{where} ({split})"
        found = [_class_number(value, class_names, here, na_labels) for value in column]
        numbers[split] = check_labels(found, class_names, here)
    return list(class_names), numbers


def known_classes(names: Sequence[str], known: Sequence[str]) -> list[int | None]:
    """For each class name its number among the `known` ones, of the same spelling or else of the same key, or None."""
    by_key = {class_key(name): number for number, name in reversed(list(enumerate(known)))}
    exact = {name: number for number, name in enumerate(known)}
    return [exact.get(name, by_key.get(class_key(name))) for name in names]


def check_labels(labels: Sequence[int | None], names: Sequence[str], where: str) -> list[int | None]:
    """Class numbers that already count into `names`; negative ones are missing.

    Raises:
        UserError: when a number has no name.
    """
    for row, label in enumerate(labels):
        if label is not None and label >= len(names):
            raise UserError(f"{where}: row {row} has label {label}, but only {len(names)} classes have a name.")
    return [None if label is None or label < 0 else int(label) for label in labels]


def compare_classes(source: Source, strict: bool, unseen: Unseen | None = None) -> None:
    """Compare the classes that occur in train with those of the held-out splits; differences become warnings.

    Args:
        source: with its splits; the warnings are added to it.
        strict: a class of val or test that train lacks is an error (in files that a person has named).
        unseen: "drop" leaves the rows of such a class out, with a warning; None where a person cannot choose.

    Raises:
        UserError: see `strict`; no class of a held-out split is in train; or the name of a class cannot be written.
    """
    names, an_item, plural = source.class_names, source.modality.an_item, source.modality.plural
    if names is None:
        return
    _check_names(names, source.name)
    if source.problem == REGRESSION:
        return
    times = Counter(map(str.casefold, names))
    if alike := [name for name in names if times[name.casefold()] > 1]:
        source.warnings.append(
            f"Classes whose names differ in capitals alone, which stay classes of their own: {_few(alike)}; spell "
            "them alike if they are one."
        )
    trained = _occurring(source, "train")
    dropped: set[int] = set()
    for split in ("val", "test"):
        held_out = _occurring(source, split)
        if not trained or not held_out:
            continue
        if unknown := held_out - trained:
            rows = sum(not unknown.isdisjoint(_classes(label)) for label in source.splits[split].labels)
            first = sorted(names[label] for label in unknown)[0]
            what = f"lasses of {split} that train lacks: {len(unknown)} (the first: {first!r})"
            if unknown == held_out or (strict and unseen != "drop"):
                drop = f", and data.unseen=drop leaves out the {rows:,} {plural} of such classes" if unseen else ""
                raise UserError(
                    f"{source.name}: c{what}; rename the class or remove its {plural}. The classes of train are "
                    f"{_few([names[label] for label in sorted(trained)])}{'' if unknown == held_out else drop}."
                )
            if unseen == "drop":
                dropped |= unknown
                source.warnings.append(f"C{what}; their {rows:,} {plural} are left out (data.unseen=drop).")
            else:
                source.warnings.append(f"C{what}.")
        if absent := sorted(names[label] for label in trained - held_out):
            source.warnings.append(
                f"Classes of train without {an_item} in {split}: {len(absent)} (the first: {absent[0]!r})."
            )
    if dropped:
        _drop(source, names, dropped)


def _missing(words: Sequence[str], count: int, where: str) -> str:
    return (
        f"Labels{f' of {where}' if where else ''} that are read as missing ({first_listed(words)}): {count:,}; "
        "data.na_labels=class makes classes of such words."
    )


def _occurring(source: Source, split: str) -> set[int]:
    return set(chain.from_iterable(map(_classes, source.splits[split].labels))) if split in source.splits else set()


def _classes(label: Label) -> tuple[int, ...]:
    """Those of a row: none, one or several."""
    return tuple(map(int, label)) if isinstance(label, tuple) else () if label is None else (label,)


def _drop(source: Source, names: list[str], gone: set[int]) -> None:
    """Leave the rows of classes that train lacks out of the splits, and the classes out of the names."""
    kept = [number for number in range(len(names)) if number not in gone]
    numbers = {number: index for index, number in enumerate(kept)}
    source.class_names = [names[number] for number in kept]
    for split, items in source.splits.items():
        rows = [(split, row) for row, label in enumerate(items.labels) if gone.isdisjoint(_classes(label))]
        source.splits[split] = chosen_items({split: items}, rows, numbers)


def _check_names(names: Sequence[str], where: str) -> None:
    """Refuse class names that other programs cannot read back: half of a surrogate pair, control characters."""
    for name in names:
        kinds = {unicodedata.category(character) for character in name}
        if kinds & {"Cs", "Cc"}:
            what = "half of a surrogate pair, which is no character" if "Cs" in kinds else "a control character"
            raise UserError(
                f"{where}: the class {ascii(name)[:_SHOWN]} holds {what}; write its name in plain characters (UTF-8)."
            )


def _class_number(value: Value, names: Sequence[str], where: str, na_labels: NaLabels) -> int | None:
    """The number in a `ClassLabel` column; in a column that was rewritten also a whole float, or the class's name."""
    text = label_text(value, where)
    if text is None:
        return None
    if isinstance(value, str) and (number := known_classes([text], names)[0]) is not None:
        return number
    if text in NA_LABELS and na_labels == "missing":
        return None
    key = class_key(text)
    if not _is_integer(key):
        raise UserError(f"{where}: label {text[:_SHOWN]!r} is none of its classes {_few(names)}.")
    return int(key)


def _kind(value: object) -> str:
    kinds = {list: "a list", tuple: "a list", np.ndarray: "a list", set: "a list", dict: "an object"}
    return kinds.get(type(value), f"of type {type(value).__name__}")


def _few(names: Sequence[str]) -> str:
    return first_listed([name[:_SHOWN] for name in names])


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
