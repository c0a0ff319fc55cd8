"""Which columns of a parquet file or Hugging Face data set hold the images or texts, and which the labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdfast.data.config import DataConfig
from sdfast.data.items import Raw
from sdfast.data.modality import Held, Modality
from sdfast.errors import UserError

_LABEL_NAMES = ("label", "labels", "class", "target")


@dataclass(frozen=True)
class Column:
    """One column: its name, what it holds, and the class names of a `ClassLabel`."""

    name: str
    holds: Held
    class_names: tuple[str, ...] | None = None


def choose_columns(
    columns: Sequence[Column], options: DataConfig, where: str, modality: Modality
) -> tuple[Column, Column | None]:
    """The column of the images or texts and the label column, if there is one.

    Without `image_key` the image column is the only one that is typed as images, or else the only one of raw bytes, or
    one of the usual name; without `text_key` the text column is the only one of strings, or one of the usual name.
    Without `label_key` the label column is the only `ClassLabel`, or one of the usual name.

    Raises:
        UserError: none fits, several do, or a named one is not there.
    """
    by_name = {column.name: column for column in columns}
    content_key: str | None = getattr(options, modality.key)
    for key, wanted in ((modality.key, content_key), ("label_key", options.label_key)):
        if wanted is not None and wanted not in by_name:
            raise UserError(f"{where} has no column {wanted!r} (data.{key}); its columns are {_listed(columns)}.")
    if content_key is not None:
        content = by_name[content_key]
    else:
        chosen = _one(_candidates(columns, options, modality), modality.usual_columns, modality.key, where)
        if chosen is None:
            raise UserError(f"{where} has no column of {modality.content}s; its columns are {_listed(columns)}.")
        content = chosen
    if content.holds not in modality.held_as:
        what = "neither images nor their bytes" if modality.content == "image" else "no texts"
        raise UserError(f"column {content.name!r} of {where} holds {what}.")
    if options.label_key is not None:
        return content, by_name[options.label_key]
    classes = [column for column in columns if column.holds == "classes"]
    named = [column for column in columns if column.holds in ("scalar", "text") and column.name in _LABEL_NAMES]
    return content, _one(classes or named, _LABEL_NAMES, "label_key", where)


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
        return (folder / path if folder is not None else Path(path)).read_bytes
    return _nothing


def text_reader(text: str) -> Callable[[], Raw]:
    """Gives a text in UTF-8; half of a surrogate pair stays, for the pack to refuse."""
    return lambda: text.encode("utf-8", "surrogatepass")


def _nothing() -> Raw:
    raise OSError("the row has no image and no text")


def _candidates(columns: Sequence[Column], options: DataConfig, modality: Modality) -> list[Column]:
    """The columns that may hold the content: all of the surest kind that occurs, a text column that is no label."""
    for held in modality.held_as:
        labels = (options.label_key, *_LABEL_NAMES) if held == "text" else ()
        if found := [column for column in columns if column.holds == held and column.name not in labels]:
            return found
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
