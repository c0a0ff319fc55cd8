"""Which columns of a parquet file or Hugging Face data set hold the images and the labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sdfast.data.config import DataConfig
from sdfast.data.items import Raw
from sdfast.errors import UserError

_IMAGE_NAMES = ("image", "img", "images", "jpg", "png")
_LABEL_NAMES = ("label", "labels", "class", "target")


@dataclass(frozen=True)
class Column:
    """One column: its name, what it holds, and the class names of a `ClassLabel`."""

    name: str
    holds: Literal["image", "bytes", "classes", "scalar", "other"]
    class_names: tuple[str, ...] | None = None


def choose_columns(columns: Sequence[Column], options: DataConfig, where: str) -> tuple[Column, Column | None]:
    """The image column and the label column, if there is one.

    Without `image_key` the image column is the only one that is typed as images, or else the only one of raw bytes, or
    one of the usual name. Without `label_key` the label column is the only `ClassLabel`, or one of the usual name.

    Raises:
        UserError: none fits, several do, or a named one is not there.
    """
    by_name = {column.name: column for column in columns}
    for key, wanted in (("image_key", options.image_key), ("label_key", options.label_key)):
        if wanted is not None and wanted not in by_name:
            raise UserError(f"{where} has no column {wanted!r} (data.{key}); its columns are {_listed(columns)}.")
    if options.image_key is not None:
        image = by_name[options.image_key]
    else:
        images = [column for column in columns if column.holds == "image"]
        images = images or [column for column in columns if column.holds == "bytes"]
        chosen = _one(images, _IMAGE_NAMES, "image_key", where)
        if chosen is None:
            raise UserError(f"{where} has no column of images; its columns are {_listed(columns)}.")
        image = chosen
    if image.holds not in ("image", "bytes"):
        raise UserError(f"column {image.name!r} of {where} holds neither images nor their bytes.")
    if options.label_key is not None:
        return image, by_name[options.label_key]
    classes = [column for column in columns if column.holds == "classes"]
    named = [column for column in columns if column.holds == "scalar" and column.name in _LABEL_NAMES]
    return image, _one(classes or named, _LABEL_NAMES, "label_key", where)


def cell_reader(cell: Any, folder: Path | None) -> Callable[[], Raw]:
    """How to read one cell of an image column: raw bytes, or a struct of bytes and path.

    Args:
        cell: bytes, {"bytes": ..., "path": ...} or None.
        folder: where a relative path starts.
    """
    content = cell.get("bytes") if isinstance(cell, dict) else cell
    path = cell.get("path") if isinstance(cell, dict) else None
    if content is not None:
        return lambda: bytes(content)
    if path:
        return (folder / path if folder is not None else Path(path)).read_bytes
    return _no_image


def _no_image() -> Raw:
    raise OSError("the row has no image")


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
