"""Which columns of a table hold the images or texts, which the labels, and which the splits.

In tables of text columns are told by their names alone; parquet files and Hugging Face data sets have types as well.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sdfast.data.config import NO_COLUMN, DataConfig
from sdfast.data.groups import read_pattern
from sdfast.data.modality import IMAGES, LABEL_COLUMN, USUAL_LABEL_COLUMNS, Held, Modality, listed, other_than
from sdfast.data.records import USUAL_SPLIT_COLUMNS, split_of_value
from sdfast.errors import UserError

NO_LABELS = "no column is taken for the labels"
_LABEL_NAMES = ("label", "labels", "class", "target")  # where columns have types, before the other usual ones


def choose_names(
    names: Sequence[str], options: DataConfig, modality: Modality, where: str, what: str = "column"
) -> tuple[str | None, tuple[str, ...]]:
    """The column of contents, None where there is none, and that of the labels, or those where several are named.

    They are those that `options` names, or else those called as documented, or else as is usual.

    Names are the same without regard to case and to blanks around them. A usual name decides when one column alone has
    one; a `label_key` "none" goes without labels. Sentences say `where` the columns are, and `what` they are called.

    Raises:
        UserError: no column of a name that `options` gives, or several that may hold the content.
    """
    wanted: str | None = getattr(options, modality.key)
    content = _given(names, wanted, modality.key, where, what)
    if content is None:
        fitting = fitting_names(names, modality.column, modality.listed_columns)
        if len(fitting) > 1:
            raise UserError(
                f"{where} has several {what}s that may hold the {modality.content}s ({listed(fitting)}); choose one by "
                f"data.{modality.key}=..."
            )
        content = fitting[0] if fitting else None
    if options.label_key == NO_COLUMN and NO_COLUMN not in names:
        return content, ()
    if options.label_key is not None:
        keys = options.label_key if isinstance(options.label_key, tuple) else (options.label_key,)
        return content, tuple(filter(None, (_given(names, key, "label_key", where, what) for key in keys)))
    fitting = fitting_names([name for name in names if name != content], LABEL_COLUMN, USUAL_LABEL_COLUMNS)
    return content, tuple(fitting) if len(fitting) == 1 else ()


def fitting_names(names: Sequence[str], documented: str, usual: Sequence[str]) -> list[str]:
    """The names that are as documented (exactly, or else but for case and blanks), or else all that are usual."""
    plain = [_plain(name) for name in names]
    if documented in names:
        return [documented]
    if documented in plain:
        return [names[plain.index(documented)]]
    return [name for name, one in zip(names, plain, strict=True) if one in usual]


def find_split_column(
    names: Sequence[str], options: DataConfig, where: str, taken: Collection[str | None]
) -> str | None:
    """The column that may say the split of each row, beside those `taken` for contents and labels.

    It is that of `data.split_key` ("none": none), or the first of the usual names.

    Raises:
        UserError: there is no column of the name that `split_key` gives.
    """
    if options.split_key is not None:
        none = options.split_key == NO_COLUMN and NO_COLUMN not in names
        return None if none else _given(names, options.split_key, "split_key", where, alike=False)
    free = {name.strip().lower(): name for name in reversed(names) if name not in taken}
    return next((free[name] for name in USUAL_SPLIT_COLUMNS if name in free), None)


def find_group_column(names: Sequence[str], options: DataConfig, where: str, alike: bool = True) -> str | None:
    """The column of `data.group`, also by another case or other blanks where they may be `alike`.

    None where nothing is asked for, or a pattern of the rows' names is.

    Raises:
        UserError: there is no such column, and it is no pattern.
    """
    if options.group is None:
        return None
    try:
        return _given(names, options.group, "group", where, alike=alike)
    except UserError as error:
        read_pattern(options.group, str(error).removesuffix("."))
        return None


def column_notes(
    content: str | None, label: str | None, names: Sequence[str], options: DataConfig, modality: Modality
) -> list[str]:
    """Sentences, without the source's name and a full stop, about the columns of contents and labels.

    They say which were taken by another usual name, and that nothing has a label where one of `names` may hold them.
    """
    said = []
    parts = ((content, modality.column, modality.key), (label, LABEL_COLUMN, "label_key"))
    for (name, documented, key), role in zip(parts, (f"{modality.content}s", "labels"), strict=True):
        if name is not None and name != documented and getattr(options, key) is None:
            said.append(f"{name!r} is taken for the {role} (data.{key} chooses another)")
    others = [name for name in names if name != content]
    if label is None and others and options.label_key is None:
        either = repr(others[0]) if len(others) == 1 else f"one of {listed(others)}"
        said.append(f"{NO_LABELS}; if they are {either}, say so by data.label_key")
    return said


def _given(
    names: Sequence[str],
    wanted: str | None,
    key: str,
    where: str,
    what: str = "column",
    alike: bool = True,
    most: int | None = 10,
) -> str | None:
    """The column that a key names, also by another case or other blanks where they may be `alike`; None for None."""
    if wanted is None or wanted in names:
        return wanted
    fitting = [name for name in names if alike and _plain(name) == _plain(wanted)]
    if len(fitting) != 1:
        raise UserError(f"{where} has no {what} {wanted!r} (data.{key}); its {what}s are {listed(names, most)}.")
    return fitting[0]


def _plain(name: str) -> str:
    return name.strip().lower().replace(" ", "_").replace("-", "_")


@dataclass(frozen=True)
class Column:
    """One column: its name, what it holds, and the class names of a `ClassLabel`, or of a list of such.

    Several columns of labels are one here; `parts` are their names.
    """

    name: str
    holds: Held
    class_names: tuple[str, ...] | None = None
    parts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Chosen:
    """The columns of one file or split: of the images or texts, of labels, splits and groups, if there are such.

    Attributes:
        others: names of those that might be labels and are neither of these.
    """

    content: Column
    label: Column | None
    split: Column | None
    others: tuple[str, ...] = ()
    group: Column | None = None

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """The names of the classes, when the labels are a `ClassLabel`; else None."""
        return None if self.label is None else self.label.class_names

    def joined(self, before: Chosen | None, where: str) -> Chosen:
        """These columns for the rows of the files `before` as well, with the class names that one of them has.

        Raises:
            UserError: the columns here have other names than those before, or the labels two lists of classes.
        """
        if before is None:
            return self
        names = {chosen.class_names for chosen in (self, before)} - {None}
        labels = [None if chosen.label is None else chosen.label.name for chosen in (self, before)]
        if self.content != before.content or labels[0] != labels[1] or len(names) > 1:
            raise UserError(
                f"{where} has other columns or classes than what comes before it ({self._described()}, not "
                f"{before._described()}); keep one kind."
            )
        label = before.label if self.class_names is None else self.label
        return replace(self, label=label, split=self.split or before.split)

    def _described(self) -> str:
        if self.label is None:
            return f"{self.content.name!r} and no labels"
        names = ", ".join(map(repr, (self.class_names or ())[:10]))
        return f"{self.content.name!r} and {self.label.name!r}{f' with the classes {names}' if names else ''}"


def choose_columns(columns: Sequence[Column], options: DataConfig, where: str, modality: Modality) -> Chosen:
    """The column of the images or texts, and those of the labels and of the splits, if there are such.

    Without `image_key` the image column is the only one that is typed as images, or else the only one of raw bytes, or
    one of the usual name, or else the column of strings that is called as in a list of files; without `text_key` the
    text column is the only one of strings, or one of the usual name.
    Without `label_key` the label column is the only `ClassLabel`, or one of the usual name; `none` goes without.
    That of the splits is chosen by `find_split_column`, and that of the groups by `find_group_column`.

    Raises:
        UserError: none fits, several do, or a named one is not there.
    """
    by_name = {column.name: column for column in columns}
    every = [column.name for column in columns]
    wants_labels = options.label_key != NO_COLUMN or NO_COLUMN in by_name
    given: str | tuple[str, ...] | None = options.label_key if wants_labels else None
    several = given if isinstance(given, tuple) else ()
    wanted = ((modality.key, getattr(options, modality.key)), *(("label_key", name) for name in several or (given,)))
    asked = (_given(every, name, key, where, alike=False, most=None) for key, name in wanted)
    content, label, *_ = (None if name is None else by_name[name] for name in asked)
    if several:
        label = Column(", ".join(several), "other", parts=several)
    if content is None:
        content = _one(_candidates(columns, options, modality), modality.usual_columns, modality.key, where)
    if content is None and modality is IMAGES:  # names of files
        files = [column for column in columns if column.holds == "text"]
        fitting = fitting_names([column.name for column in files], modality.column, modality.listed_columns)
        content = _one([by_name[name] for name in fitting], (), modality.key, where)
    if content is None:
        fix = f": {modality.otherwise}" if _candidates(columns, options, other_than(modality)) else ""
        raise UserError(f"{where} has no column of {modality.content}s; its columns are {listed(every, None)}{fix}.")
    if content.holds not in modality.held_as and not (modality is IMAGES and content.holds == "text"):
        what = "neither images nor their bytes, nor names of files" if modality.content == "image" else "no texts"
        raise UserError(f"column {content.name!r} of {where} holds {what}.")
    if label is None and wants_labels:
        label = _label_column([column for column in columns if column != content], where)
    names = [column.name for column in columns if column.holds in ("text", "classes", "scalar")]
    taken = (content.name, *(() if label is None else label.parts or (label.name,)))
    split = find_split_column(names, options, where, taken)
    group = find_group_column(every, options, where, alike=False)
    listed_classes = [column.name for column in columns if column.holds == "other" and column.class_names]
    others = tuple(name for name in (*names, *listed_classes) if name not in (*taken, split, group))
    split_column, group_column = (None if name is None else by_name[name] for name in (split, group))
    return Chosen(content, label, split_column, others, group_column)


def _label_column(columns: Sequence[Column], where: str) -> Column | None:
    """The only `ClassLabel`, or the column of a usual name, or the only one of a less usual name.

    A column of a usual name may hold lists, which are several labels a row, or bytes: what no class is, is refused
    where it is read.
    """
    classes = [  # but those that name splits
        column
        for column in columns
        if column.holds == "classes" and None in map(split_of_value, column.class_names or ("",))
    ]
    named = [column for column in columns if column.holds != "image" and column.name in _LABEL_NAMES]
    if not classes and not named:
        usual = [column for column in columns if column.holds in ("scalar", "text")]
        found = [column for column in usual if column.name.lower() in USUAL_LABEL_COLUMNS]
        named = found if len(found) == 1 else []
    return _one(classes or named, _LABEL_NAMES, "label_key", where)


def label_notes(chosen: Chosen, options: DataConfig, modality: Modality, name: str) -> list[str]:
    """Sentences about the source `name`: the labels have a less usual name, or there are none beside other columns."""
    label = None if chosen.label is None else chosen.label.name
    if chosen.label is not None and (chosen.label.class_names or chosen.label.parts or label in _LABEL_NAMES):
        return []
    said = column_notes(modality.column, label, chosen.others, options, modality)  # whatever its own is called
    return [f"{name}: {sentence}." for sentence in said]


def named_cells(column: Column, cells: Sequence[Any]) -> list[Any]:
    """The cells of a column, those of a `ClassLabel` by name."""
    if (names := column.class_names) is None:
        return list(cells)
    return [names[cell] if isinstance(cell, int) and 0 <= cell < len(names) else None for cell in cells]


def _candidates(columns: Sequence[Column], options: DataConfig, modality: Modality) -> list[Column]:
    """The columns that may hold the content: all of the surest kind that occurs, no labels or splits."""
    for held in modality.held_as:
        keys = options.label_key if isinstance(options.label_key, tuple) else (options.label_key,)
        others = (*keys, options.split_key, "split", *_LABEL_NAMES) if held == "text" else ()
        if found := [column for column in columns if column.holds == held and column.name not in others]:
            return [column for column in found if column.name.lower() not in USUAL_LABEL_COLUMNS] or found
    return []


def _one(columns: Sequence[Column], usual: Sequence[str], key: str, where: str) -> Column | None:
    if len(columns) <= 1:
        return columns[0] if columns else None
    if found := [column for name in usual for column in columns if column.name == name]:
        return found[0]
    several = listed([column.name for column in columns], None)
    raise UserError(f"{where} has several such columns ({several}); choose one by data.{key}=...")
