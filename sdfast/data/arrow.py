"""Parquet files, and Hugging Face data sets as they are saved or on the hub; images stay encoded.

Their columns have types, and their contents are read block by block.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdfast.data.columns import Column, choose_columns, label_notes, named_cells
from sdfast.data.config import DataConfig
from sdfast.data.folder import LOOKED_AT, check_first_names, image_file, portable
from sdfast.data.items import SPLITS, Item, Raw, Source, cell_item, file_reader
from sdfast.data.modality import IMAGES, Held, Modality
from sdfast.data.records import Notes, Rows, files_by_split, split_name
from sdfast.data.several import Cells
from sdfast.errors import UserError
from sdfast.regular import refuse

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

_BLOCK, _MANY = 64, 1 << 14  # rows read at a time: of contents, of labels


def open_parquet(path: Path, options: DataConfig, modality: Modality) -> Source:
    """Open a parquet file or a folder of them.

    Images are bytes, or structs of bytes and path as Hugging Face writes them; texts are strings; `ClassLabel` names
    are read from the file's metadata. In a folder, files that begin with `train`, `test`, `val`, ... or lie in a folder
    of that name are the splits; without such names everything is train, or what a column of splits says.

    Raises:
        UserError: not a parquet file, no such column, columns or classes that differ between the files.
    """
    files = parquet_files(path) if path.is_dir() else [path]
    source = Source(path.name, "parquet", None, {}, modality=modality)
    found = files_by_split(path, files, source)
    parts = ((split, _file_part(*file)) for split, each in found.items() for file in each)
    return _open(source, parts, options, str(path))


def open_saved_dataset(path: Path, options: DataConfig, modality: Modality) -> Source:
    """Open a folder written by `Dataset.save_to_disk` or `DatasetDict.save_to_disk`.

    Raises:
        UserError: not readable as such, no column of images or texts, or no known split.
    """
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:  # whatever a damaged folder makes datasets and pyarrow raise
        raise UserError(f"{path} cannot be read as a saved Hugging Face data set: {_first_line(error)}") from error
    return _open_loaded(path.name, loaded, options, path, modality)


def open_hub_dataset(spec: str, options: DataConfig, modality: Modality) -> Source:
    """Open a data set of the Hugging Face hub by its id, `owner/name` or `owner/name:configuration`.

    Raises:
        UserError: the hub cannot be reached, does not know the name, or the data set has no such column.
    """
    import datasets

    name, _, configuration = spec.partition(":")
    _ask_hub(name)
    try:
        loaded = datasets.load_dataset(name, configuration or None)
    except Exception as error:  # datasets raises its own, OSError, ValueError, ... for data it cannot fetch or parse
        raise UserError(
            f"the data set {spec!r} could not be loaded from the Hugging Face hub: {_first_line(error)}"
        ) from error
    return _open_loaded(spec, loaded, options, Path.cwd(), modality)


def _ask_hub(name: str) -> None:
    """Ask once whether the hub knows the data set, so that a typing error is answered at once and not after retries."""
    import huggingface_hub
    from huggingface_hub.errors import RepositoryNotFoundError

    if huggingface_hub.is_offline_mode():
        return
    try:
        huggingface_hub.HfApi().dataset_info(name, timeout=30)
    except (RepositoryNotFoundError, huggingface_hub.utils.HFValidationError) as error:
        raise UserError(f"neither a file or folder nor a public data set of the hub is called {name!r}.") from error
    except Exception as error:  # the HTTP client's own errors: no network, time-out, proxy
        raise UserError(
            f"there is no file or folder {name!r}, and the Hugging Face hub cannot be reached to look for a data set "
            f"of that name ({_first_line(error)}); for one that was downloaded before, set HF_HUB_OFFLINE=1."
        ) from error


def _open_loaded(name: str, loaded: Any, options: DataConfig, folder: Path, modality: Modality) -> Source:
    tables: dict[str, datasets.Dataset] = dict(loaded) if isinstance(loaded, dict) else {"train": loaded}
    known = {split_name(part): part for part in tables if split_name(part) is not None}
    if not known and len(tables) == 1:
        known = {"train": next(iter(tables))}
    if not known:
        raise UserError(f"{name} has no split called train, val or test; its splits are {', '.join(tables)}.")
    source = Source(name, "Hugging Face data set", None, {}, modality=modality)
    if unused := sorted(set(tables) - set(known.values())):
        source.warnings.append(f"Splits of {name} that are not used: {', '.join(unused)}.")
    parts = (
        (split, _table_part(tables[part], f"{name} ({part})", part, folder))
        for split in SPLITS
        if (part := known.get(split)) is not None and len(tables[part])
    )
    return _open(source, parts, options, name)


def _open(source: Source, parts: Iterable[tuple[str, _Part]], options: DataConfig, path: str) -> Source:
    """The source of the parts and their splits; `path` is it in a sentence."""
    rows, chosen, notes = Rows(), None, Notes()
    for split, part in parts:
        own = choose_columns(part.columns, options, part.where, source.modality)
        chosen = own.joined(chosen, part.where)
        if source.modality is IMAGES and own.content.holds == "text":
            part = _listing(part, own.content.name, notes)
        aside = {column: part.labels(column) for column in (own.label, own.split, own.group) if column}
        rows.add(
            split,
            [None] * part.rows if own.label is None else aside[own.label],
            partial(part.items, own.content.name),
            *(None if column is None else named_cells(column, aside[column]) for column in (own.split, own.group)),
        )
    if chosen is None or not any(rows.labels.values()):
        raise UserError(f"{path} has no rows.")
    label, names = chosen.label, chosen.class_names
    rows.label_columns = () if label is None else label.parts or (label.name,)
    rows.column = None if chosen.split is None else chosen.split.name
    source.warnings += label_notes(chosen, options, source.modality, source.name)
    notes.add_to(source)
    where = source.name if label is None else f"{source.name}, column {label.name!r}"
    return rows.fill(source, options, options.unseen, names, where, strict=names is None)


@dataclass(frozen=True)
class _Part:
    """A parquet file, or a split of a Hugging Face data set.

    Attributes:
        where: it is, for sentences.
        name: in the names of its items.
        folder: in which relative paths of its images start.
        columns: of it.
        rows: how many.
        read: gives one column as arrow has it, so many rows at a time.
        files: where the contents are files, which a column names: the name and the reader of each.
    """

    where: str
    name: str
    folder: Path
    columns: list[Column]
    rows: int
    read: Callable[[str, int], Iterator[Any]]
    files: list[tuple[str, Callable[[], Raw]]] | None = None

    def cells(self, column: str, rows: int = _BLOCK) -> Iterator[Any]:
        """The cells of a column, images as they are encoded."""
        return (cell for block in self.read(column, rows) for cell in block.column(0).to_pylist())

    def labels(self, column: Column) -> list[Any]:
        """The cells of a column, and those of several together."""
        if column.parts:
            return list(map(Cells, zip(*(self.cells(part, _MANY) for part in column.parts), strict=True)))
        return list(self.cells(column.name, _MANY))

    def items(self, column: str) -> Iterator[Item]:
        """The items of a column of contents."""
        if self.files is not None:
            return (Item(name, None, read) for name, read in self.files)
        return (cell_item(f"{self.name}:{row}", cell, self.folder) for row, cell in enumerate(self.cells(column)))


def _listing(part: _Part, column: str, notes: Notes) -> _Part:
    """The part with the files that a column names, by the rules of a list of images.

    Raises:
        UserError: see `image_file` and `check_first_names`.
    """
    files: list[tuple[str, Callable[[], Raw]]] = []
    first: list[tuple[str, str]] = []
    for row, cell in enumerate(part.cells(column, _MANY)):
        where = f"{part.where} row {row}"
        if not (cell and cell.strip()):
            raise UserError(f"{where}: no file name in column {column!r}.")
        name = image_file(cell.strip(), part.folder, where, notes)
        files.append((portable(name, part.folder), file_reader(part.folder / name)))
        if len(first) < LOOKED_AT:
            first.append((name, where))
    check_first_names(first, part.folder)
    return replace(part, files=files)


def _file_part(path: Path, name: str) -> _Part:
    """A parquet file, by its name relative to the source."""

    def read(column: str, rows: int) -> Iterator[Any]:
        with _opened(path) as file:
            yield from file.iter_batches(rows, columns=[column])

    with _opened(path) as file:
        return _Part(str(path), name, path.parent, typed_columns(file.schema_arrow), file.metadata.num_rows, read)


def _table_part(table: datasets.Dataset, where: str, name: str, folder: Path) -> _Part:
    """A split of a Hugging Face data set, by its own name."""

    def read(column: str, rows: int) -> Iterator[Any]:
        return table.select_columns([column]).with_format("arrow").iter(rows)

    return _Part(where, name, folder, typed_columns(table.features.arrow_schema), len(table), read)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[pq.ParquetFile]:
    """The parquet file; pyarrow's errors become one sentence that names it."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path, pre_buffer=False) as file:  # else what was read stays in memory until it is closed
            yield file
    except pa.ArrowException as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is not a readable parquet file: {reason}") from error


def parquet_files(folder: Path) -> list[Path]:
    """The parquet files below `folder` in the order of their names, hidden ones left out.

    Raises:
        OSError: a folder cannot be listed.
    """
    found: list[Path] = []
    for where, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(where, name) for name in files if name.endswith(".parquet") and not name.startswith(".")]
    return sorted((file for file in found if file.is_file()), key=lambda file: file.as_posix())


def typed_columns(schema: pa.Schema) -> list[Column]:
    """The columns of a file or data set, with what Hugging Face's metadata says about them."""
    import pyarrow as pa

    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        features = {}
    columns = []
    for entry in schema:
        feature = features.get(entry.name) if isinstance(features, dict) else None
        feature = feature if isinstance(feature, dict) else {}
        kind, names = feature.get("_type"), None
        other = pa.types.is_nested(entry.type) or kind not in (None, "Value", "ClassLabel", "Image")
        holds: Held = "other" if other else "scalar"
        if kind == "ClassLabel" and feature.get("names"):
            holds, names = "classes", tuple(feature["names"])
        elif found := _names_in_list(feature):
            names = found
        elif kind in (None, "Image") and pa.types.is_struct(entry.type) and entry.type.get_field_index("bytes") >= 0:
            holds = "image"
        elif pa.types.is_binary(entry.type) or pa.types.is_large_binary(entry.type):
            holds = "image" if kind == "Image" else "bytes"
        elif pa.types.is_string(entry.type) or pa.types.is_large_string(entry.type):
            holds = "text"
        columns.append(Column(entry.name, holds, names))
    return columns


def _names_in_list(feature: dict[str, Any]) -> tuple[str, ...] | None:
    """The names of a list of `ClassLabel`, as the versions of datasets write it; None of anything else."""
    inner = feature.get("feature") if feature.get("_type") in ("Sequence", "List", "LargeList") else None
    names = inner.get("names") if isinstance(inner, dict) and inner.get("_type") == "ClassLabel" else None
    return tuple(names) if names else None


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".") + "."
