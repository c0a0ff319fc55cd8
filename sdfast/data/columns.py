"""Which columns of a parquet file or Hugging Face data set hold the images or texts, and which the labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sdfast.data.column_names import NamedColumns, taken_notes, unlabelled_notes
from sdfast.data.config import NO_COLUMN, DataConfig
from sdfast.data.items import Raw, file_reader
from sdfast.data.modality import IMAGES, TEXTS, USUAL_LABEL_COLUMNS, Held, Modality
from sdfast.data.split_column import find_split_column, split_of_value
from sdfast.errors import UserError

_LABEL_NAMES = ("label", "labels", "class", "target")  # before the other usual ones


@dataclass(frozen=True)
class Column:
    """One column: its name, what it holds, and the class names of a `ClassLabel`."""

    name: str
    holds: Held
    class_names: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Chosen:
    """The columns of one file or split: of the images or texts, of the labels and of the splits, if there are such.

    Attributes:
        others: names of those that might be labels and are neither of these.
    """

    content: Column
    label: Column | None
    split: Column | None
    others: tuple[str, ...] = ()

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Of the labels, when they are a `ClassLabel`."""
        return None if self.label is None else self.label.class_names

    def joined(self, before: Chosen | None, where: str) -> Chosen:
        """These columns for the rows of the files before as well, with the class names that one of them has.

        Args:
            before: the columns of the files before, or None for the first.
            where: of these, for the sentence.

        Raises:
            UserError: the columns have other names, or the labels two lists of classes.
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
    one of the usual name; without `text_key` the text column is the only one of strings, or one of the usual name.
    Without `label_key` the label column is the only `ClassLabel`, or one of the usual name; `none` goes without.
    That of the splits is chosen by `find_split_column`.

    Raises:
        UserError: none fits, several do, or a named one is not there.
    """
    by_name = {column.name: column for column in columns}
    content_key: str | None = getattr(options, modality.key)
    wants_labels = options.label_key != NO_COLUMN or NO_COLUMN in by_name
    label_key = options.label_key if wants_labels else None
    for key, wanted in ((modality.key, content_key), ("label_key", label_key)):
        if wanted is not None and wanted not in by_name:
            raise UserError(f"{where} has no column {wanted!r} (data.{key}); its columns are {_listed(columns)}.")
    if content_key is not None:
        content = by_name[content_key]
    else:
        chosen = _one(_candidates(columns, options, modality), modality.usual_columns, modality.key, where)
        if chosen is None:
            other = TEXTS if modality is IMAGES else IMAGES
            fix = f": {modality.otherwise}" if _candidates(columns, options, other) else ""
            raise UserError(f"{where} has no column of {modality.content}s; its columns are {_listed(columns)}{fix}.")
        content = chosen
    if content.holds not in modality.held_as:
        what = "neither images nor their bytes" if modality.content == "image" else "no texts"
        raise UserError(f"column {content.name!r} of {where} holds {what}.")
    label = by_name[label_key] if label_key is not None else None
    if label is None and wants_labels:
        label = _label_column([column for column in columns if column != content], where)
    names = [column.name for column in columns if column.holds in ("text", "classes", "scalar")]
    split = find_split_column(names, options, where, (content.name, label.name if label is not None else None))
    others = tuple(
        name for name in names if name not in (content.name, split) and (label is None or name != label.name)
    )
    return Chosen(content, label, by_name[split] if split is not None else None, others)


def _label_column(columns: Sequence[Column], where: str) -> Column | None:
    """The only `ClassLabel`, or the column of a usual name, or the only one of a less usual name.

    A column of a usual name may hold lists or bytes: what no class is, is refused where it is read.
    """
    classes = [column for column in columns if column.holds == "classes" and not _is_split(column)]
    named = [column for column in columns if column.holds != "image" and column.name in _LABEL_NAMES]
    if not classes and not named:
        usual = [column for column in columns if column.holds in ("scalar", "text")]
        found = [column for column in usual if column.name.lower() in USUAL_LABEL_COLUMNS]
        named = found if len(found) == 1 else []
    return _one(classes or named, _LABEL_NAMES, "label_key", where)


def label_notes(chosen: Chosen, options: DataConfig, modality: Modality, name: str) -> list[str]:
    """Sentences about the source `name`: the labels have a less usual name, or there are none beside other columns."""
    label = None if chosen.label is None else chosen.label.name
    taken = NamedColumns(modality.column, label)  # the content's name is no matter here
    if chosen.label is not None and (chosen.label.holds == "classes" or label in _LABEL_NAMES):
        return []
    said = taken_notes(taken, options, modality) + unlabelled_notes(taken, chosen.others, options)
    return [f"{name}: {sentence}." for sentence in said]


def _is_split(column: Column) -> bool:
    """Whether a `ClassLabel` names splits and no classes."""
    return None not in map(split_of_value, column.class_names or ("",))


def named_cells(column: Column, cells: Sequence[Any]) -> list[Any]:
    """The cells of a column, those of a `ClassLabel` by name."""
    names = column.class_names
    if names is None:
        return list(cells)
    return [names[cell] if isinstance(cell, int) and 0 <= cell < len(names) else None for cell in cells]


def cell_reader(cell: Any, folder: Path | None) -> Callable[[], Raw]:
    """How to read one cell: a text, raw bytes, or a struct of bytes and path.

    Args:
        cell: str, bytes, {"bytes": ..., "path": ...} or None.
        folder: where a relative path starts.
    """
    if isinstance(cell, str):
        return text_reader(cell)
    content = cell.get("bytes") if isinstance(cell, dict) else cell
    path = cell.get("path") if isinstance(cell, dict) else None
    if content is not None:
        return lambda: bytes(content)
    if path:
        return file_reader(folder / path if folder is not None else Path(path))
    return _nothing


def held(cell: Any) -> int:
    """How many characters of a cell with a text are in memory, for `Item.held`."""
    return len(cell) if isinstance(cell, str) else 0


def text_reader(text: str) -> Callable[[], Raw]:
    """Gives a text in UTF-8; half of a surrogate pair stays, for the pack to refuse."""
    return lambda: text.encode("utf-8", "surrogatepass")


def _nothing() -> Raw:
    raise OSError("the row has no image and no text")


def _candidates(columns: Sequence[Column], options: DataConfig, modality: Modality) -> list[Column]:
    """The columns that may hold the content: all of the surest kind that occurs, no labels or splits."""
    for held in modality.held_as:
        others = (options.label_key, options.split_key, "split", *_LABEL_NAMES) if held == "text" else ()
        if found := [column for column in columns if column.holds == held and column.name not in others]:
            return [column for column in found if column.name.lower() not in USUAL_LABEL_COLUMNS] or found
    return []


def _one(columns: Sequence[Column], usual: Sequence[str], key: str, where: str) -> Column | None:
    if len(columns) <= 1:
        return columns[0] if columns else None
    for name in usual:
        for column in columns:
            if column.name == name:
                return column
    raise UserError(f"{where} has several such columns ({_listed(columns)}); choose one by data.{key}=...")


def _listed(columns: Sequence[Column]) -> str:
    return ", ".join(repr(column.name) for column in columns) or "none"
