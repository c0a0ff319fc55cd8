"""Several classes a row, and numbers, from whatever cells a source writes them in."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from sdfast.data.config import SEPARATORS, DataConfig
from sdfast.data.labels import NA_LABELS, Value, class_key, label_text, number_labels
from sdfast.data.modality import first_listed
from sdfast.data.problem import SEVERAL, SINGLE, Label, ProblemType
from sdfast.errors import UserError

_LISTS = (list, tuple, np.ndarray, set)
_LOOKED_FOR = ("comma", "semicolon", "bar")
_SHOWN = 40  # characters of a cell in a sentence
_LARGEST = float(np.finfo(np.float32).max)
_SHARE = 0.2  # of the classes that look like several, from which on it is said
_SET = {"0": False, "1": True, "false": False, "true": True}
_HINT = "if they are several classes a row, set data.problem_type=multi_label_classification"

Say = Callable[[str], object]


class Cells(tuple[Value, ...]):
    """The cells of one row in several columns of labels."""

    __slots__ = ()


def problem_in(values: Mapping[str, Sequence[Value]], options: DataConfig) -> ProblemType:
    """What the labels of a source are: what `options` say, or else what is found in the cells of its splits.

    Lists, several columns and a separator are several classes a row, all else is one; numbers are regression only when
    that is asked for.
    """
    if options.problem_type is not None:
        return options.problem_type
    several = options.label_separator is not None or any(
        isinstance(value, _LISTS) for column in values.values() for value in column
    )
    return SEVERAL if several else SINGLE


def encode_several(
    values: Mapping[str, Sequence[Value]],
    class_names: Sequence[str] | None,
    columns: Sequence[str],
    where: str,
    options: DataConfig,
    say: Say,
) -> tuple[list[str] | None, dict[str, list[Label]]]:
    """Class numbers of rows that have several.

    A cell is a list, a text whose parts `options.label_separator` parts, a list written as a text, one class, or a 0 or
    1 in each of several columns. An empty list is a label too: none of the classes applies. An empty cell or null is no
    label, and where one of several columns is empty the row has none.

    Args:
        values: the cells of each split.
        class_names, where, say: see `number_labels`.
        columns: the names of the columns of labels.
        options: their `label_separator` and `na_labels`.

    Returns:
        names: the classes in order, or None when no row has a label.
        numbers: per split, the ascending class numbers of each row, or None where it has no label.

    Raises:
        UserError: what is no class, or neither 0 nor 1 in one of several columns.
    """
    if any(isinstance(value, Cells) for column in values.values() for value in column):
        return _switches(values, columns, where, say)
    rows = {
        split: [_parts(value, where, options.label_separator) for value in cells] for split, cells in values.items()
    }
    for split, cells in rows.items():
        _check_numbers(cells, class_names, f"{where} ({split})")
    flat = {split: [value for cell in cells for value in cell or ()] for split, cells in rows.items()}
    names, numbers = number_labels(flat, class_names, where, options.na_labels, say)
    found: dict[str, list[Label]] = {}
    for split, cells in rows.items():
        rest = iter(numbers[split])
        found[split] = [None if cell is None else _together(cell, [next(rest) for _ in cell]) for cell in cells]
    if names is not None and class_names is None and options.label_separator is None:
        say_combinations(names, where, SEVERAL, say)
    return names, found


def encode_numbers(
    values: Mapping[str, Sequence[Value]], columns: Sequence[str], where: str, say: Say
) -> tuple[list[str] | None, dict[str, list[Label]]]:
    """The numbers of rows: of one column, of several, or of one that holds lists of equally many.

    A row in which a number is missing (see `label_text`; nan, N/A and their kin in any case) has no label.

    Args:
        values: the cells of each split.
        columns: the names of the columns of labels.
        where, say: see `number_labels`.

    Returns:
        names: of the numbers, the columns' (of lists with _0, _1, ... behind it), or None when no row has a label.
        numbers: per split, those of each row, or None where it has no label.

    Raises:
        UserError: a cell is no number, or lists differ in length.
    """
    lengths: dict[int, str] = {}
    found: dict[str, list[Label]] = {}
    partly = 0
    for split, cells in values.items():
        found[split] = []
        for row, cell in enumerate(cells):
            here = f"{where} ({split}), row {row}"
            cell = _read_list(cell) if isinstance(cell, str) else cell
            listed = isinstance(cell, _LISTS)
            numbers = [_number(value, here) for value in (cell if listed else (cell,))]
            known = [number for number in numbers if number is not None]
            if not known:
                found[split].append(None)
                continue
            lengths.setdefault(len(numbers), here)
            partly += len(known) < len(numbers)
            found[split].append(tuple(known) if len(known) == len(numbers) else None)
    if len(lengths) > 1:
        (one, first), (other, second) = list(lengths.items())[:2]
        raise UserError(f"{first} has {one} number{'s' * (one > 1)}, and {second} has {other}; each row has as many.")
    _say_partly(partly, where, "number", say)
    if not lengths or not any(label is not None for labels in found.values() for label in labels):
        return None, {split: [None] * len(labels) for split, labels in found.items()}
    (width,) = lengths
    names = list(columns) if len(columns) == width else [f"{(columns or ['number'])[0]}_{n}" for n in range(width)]
    return names, found


def say_combinations(names: Sequence[str], where: str, problem: ProblemType, say: Say) -> None:
    """Say so where classes look like combinations of others: lists, or parts with a mark between that all recur.

    Args:
        names: of the classes, as they were found.
        where: they are.
        problem: what they were taken for.
        say: is told, in a sentence.
    """
    what = f"Classes{f' of {where}' if where else ''} that look like"
    lists = [name for name in names if name.startswith("[") and name.endswith("]")]
    if lists and len(lists) >= _SHARE * len(names):
        say(f"{what} lists, of which each is a class of its own: {len(lists):,} ({_few(lists)}); {_HINT}.")
        return
    for called in _LOOKED_FOR:
        mark = SEPARATORS[called]
        parts = {name: [part.strip() for part in name.split(mark) if part.strip()] for name in names}
        times: dict[str, int] = {}
        for each in parts.values():
            for part in set(each):
                times[part] = times.get(part, 0) + 1
        found = [name for name, each in parts.items() if len(each) > 1 and all(times[part] > 1 for part in each)]
        if len(found) > 1 and len(found) >= _SHARE * len(names):
            fix = _HINT if problem == SINGLE else "if they are several"
            say(
                f"{what} several with {mark!r} between, of which each combination is a class of its own: "
                f"{len(found):,} of {len(names):,} ({_few(found)}); {fix}{' and' if problem == SINGLE else ', set'} "
                f"data.label_separator={called}."
            )
            return


def _switches(
    values: Mapping[str, Sequence[Value]], columns: Sequence[str], where: str, say: Say
) -> tuple[list[str] | None, dict[str, list[Label]]]:
    """One class a column: 0 or 1 in each."""
    found: dict[str, list[Label]] = {}
    partly = 0
    for split, rows in values.items():
        found[split] = []
        for row, cells in enumerate(rows):
            here = f"{where} ({split}), row {row}"
            switches = [_switch(cell, here, column) for cell, column in zip(cells or (), columns, strict=False)]
            whole = None not in switches and len(switches) == len(columns)
            partly += not whole and any(switch is not None for switch in switches)
            found[split].append(tuple(place for place, switch in enumerate(switches) if switch) if whole else None)
    _say_partly(partly, where, "0 or 1", say)
    known = any(label is not None for labels in found.values() for label in labels)
    return (list(columns) if known else None), found


def _switch(cell: Value, where: str, column: str) -> bool | None:
    text = label_text(cell, where)
    if text is None or text in NA_LABELS:
        return None
    if (known := _SET.get(class_key(text))) is None:
        raise UserError(
            f"{where}: column {column!r} holds {text[:_SHOWN]!r}, and of several columns of labels (data.label_key) "
            "each is a class with 0 or 1 in its cells; for numbers set data.problem_type=regression."
        )
    return known


def _number(value: Value, where: str) -> float | None:
    text = label_text(value, where)
    if text is None or text in NA_LABELS:
        return None
    try:
        number = float(text)
        fits = abs(number) <= _LARGEST
    except ValueError:
        fits = False
    if not fits:
        raise UserError(
            f"{where}: {text[:_SHOWN]!r} is no number (as 2.5 or -1e3), and data.problem_type=regression needs one; "
            "data.label_key chooses the column or columns."
        )
    return number


def _parts(value: Value, where: str, separator: str | None) -> list[Value] | None:
    """The classes in a cell; None where it is empty."""
    if isinstance(value, _LISTS):
        return list(value)
    text = label_text(value, where)
    if text is None:
        return None
    listed = _read_list(text) if isinstance(value, str) else text
    if not isinstance(listed, str):
        return listed
    if text.startswith("[") and text.endswith("]"):  # of words without quotation marks
        return [part.strip(" '\"") for part in text[1:-1].split(separator or ",") if part.strip(" '\"")]
    if separator is None:
        return [value]
    return [part for part in map(str.strip, text.split(separator)) if part]


def _read_list(text: str) -> list[Value] | str:
    """The list that a text is one of, as JSON or pandas write it; else the text."""
    text = text.strip()
    if text.startswith("[") and text.endswith("]"):
        for read in (json.loads, ast.literal_eval):
            try:
                found = read(text)
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
            if isinstance(found, list):
                return found
    return text


def _together(cell: Sequence[Value], numbers: Sequence[int | None]) -> tuple[int, ...] | None:
    known = {number for number in numbers if number is not None}
    return tuple(sorted(known)) if known or not cell else None


def _check_numbers(rows: Sequence[list[Value] | None], names: Sequence[str] | None, where: str) -> None:
    """Refuse a number of a `ClassLabel` that has no name, by its row."""
    for row, cell in enumerate(rows if names is not None else ()):
        for value in cell or ():
            if isinstance(value, int) and value >= len(names or ()):
                raise UserError(
                    f"{where}: row {row} has label {value}, but only {len(names or ())} classes have a name."
                )


def _say_partly(count: int, where: str, what: str, say: Say) -> None:
    if count:
        say(f"Rows of {where} in which a {what} is missing beside others, which count as without a label: {count:,}.")


def _few(names: Sequence[str]) -> str:
    return first_listed([name[:_SHOWN] for name in names])
