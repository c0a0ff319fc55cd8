"""Parquet files with a column of images or texts, read block by block."""

from __future__ import annotations

import bisect
import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdfast.data.columns import Chosen, Column, cell_reader, choose_columns, held, label_notes, named_cells
from sdfast.data.config import DataConfig
from sdfast.data.items import Item, ItemList, Source
from sdfast.data.labels import Value, compare_classes, number_labels
from sdfast.data.modality import Modality
from sdfast.data.split_column import use_split_column
from sdfast.data.split_files import files_by_split
from sdfast.errors import UserError
from sdfast.regular import refuse

if TYPE_CHECKING:
    import pyarrow as pa

_BLOCK = 64  # rows read at a time


@dataclass(frozen=True)
class _Shard:
    """One parquet file: its path, its name relative to the source, and its rows."""

    path: Path
    name: str
    rows: int


class ParquetItems:
    """An `ItemList` over the rows of parquet files, in the order of their names."""

    def __init__(self, shards: list[_Shard], column: str, labels: list[int | None]) -> None:
        self._shards = shards
        self._column = column
        self.labels = labels
        self._starts = [sum(shard.rows for shard in shards[:index]) for index in range(len(shards))]

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[Item]:
        import pyarrow.parquet as pq

        for start, shard in zip(self._starts, self._shards, strict=True):
            row = 0
            with _explained(shard.path), pq.ParquetFile(shard.path) as file:
                for batch in file.iter_batches(_BLOCK, columns=[self._column]):
                    for cell in batch.column(0).to_pylist():
                        yield self._item(shard, row, self.labels[start + row], cell)
                        row += 1

    def __getitem__(self, index: int) -> Item:
        import pyarrow.parquet as pq

        index = range(len(self))[index]
        which = bisect.bisect_right(self._starts, index) - 1
        shard, row = self._shards[which], index - self._starts[which]
        with _explained(shard.path), pq.ParquetFile(shard.path) as file:
            group, first = 0, 0
            while first + file.metadata.row_group(group).num_rows <= row:
                first += file.metadata.row_group(group).num_rows
                group += 1
            cell = file.read_row_group(group, columns=[self._column]).column(0)[row - first].as_py()
        return self._item(shard, row, self.labels[index], cell)

    @staticmethod
    def _item(shard: _Shard, row: int, label: int | None, cell: Any) -> Item:
        return Item(f"{shard.name}:{row}", label, cell_reader(cell, shard.path.parent), held=held(cell))


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
    shards: dict[str, list[_Shard]] = {}
    labels: dict[str, list[Value]] = {}
    splits: dict[str, list[Any]] = {}
    chosen: Chosen | None = None
    for split, parts in files_by_split(path, files, source).items():
        shards[split], labels[split], splits[split] = [], [], []
        for file, name in parts:
            read = _read_columns(file, options, modality)
            chosen = read.columns.joined(chosen, str(file))
            shards[split].append(_Shard(file, name, len(read.labels)))
            labels[split] += read.labels
            splits[split] += [split] * len(read.labels) if read.splits is None else read.splits
    assert chosen is not None
    where = source.name if chosen.label is None else f"{source.name}, column {chosen.label.name!r}"
    source.class_names, numbers = number_labels(labels, chosen.class_names, where)
    lists: dict[str, ItemList] = {
        split: ParquetItems(parts, chosen.content.name, numbers[split])
        for split, parts in shards.items()
        if numbers[split]
    }
    if not lists:
        raise UserError(f"{path} has no rows.")
    source.splits.update(lists)
    source.warnings += label_notes(chosen, options, modality, source.name)
    use_split_column(source, chosen.split.name if chosen.split else None, splits, options)
    compare_classes(source, strict=chosen.class_names is None, unseen=options.unseen)
    return source


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


def parquet_columns(schema: pa.Schema) -> list[Column]:
    """The columns of a file, with what Hugging Face's metadata says about them."""
    import pyarrow as pa

    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        features = {}
    columns = []
    for entry in schema:
        feature = features.get(entry.name) if isinstance(features, dict) else None
        kind = feature.get("_type") if isinstance(feature, dict) else None
        binary = pa.types.is_binary(entry.type) or pa.types.is_large_binary(entry.type)
        struct = pa.types.is_struct(entry.type) and entry.type.get_field_index("bytes") >= 0
        if kind == "ClassLabel" and isinstance(feature, dict) and feature.get("names"):
            columns.append(Column(entry.name, "classes", tuple(feature["names"])))
        elif struct:
            columns.append(Column(entry.name, "image"))
        elif binary:
            columns.append(Column(entry.name, "image" if kind == "Image" else "bytes"))
        elif pa.types.is_string(entry.type) or pa.types.is_large_string(entry.type):
            columns.append(Column(entry.name, "text"))
        else:
            columns.append(Column(entry.name, "other" if pa.types.is_nested(entry.type) else "scalar"))
    return columns


@dataclass(frozen=True)
class _Read:
    """The chosen columns of a file, one label per row, and what its split column says of each row, if it has one."""

    columns: Chosen
    labels: list[Value]
    splits: list[Any] | None


def _read_columns(path: Path, options: DataConfig, modality: Modality) -> _Read:
    """What a file says of its rows beside their contents; each label is None in a file without a label column."""
    import pyarrow.parquet as pq

    with _explained(path), pq.ParquetFile(path) as file:
        chosen = choose_columns(parquet_columns(file.schema_arrow), options, str(path), modality)
        wanted = [column for column in (chosen.label, chosen.split) if column is not None]
        table = file.read(columns=[column.name for column in wanted])
        cells = {column.name: table.column(column.name).to_pylist() for column in wanted}
        labels = [None] * file.metadata.num_rows if chosen.label is None else cells[chosen.label.name]
        splits = None if chosen.split is None else named_cells(chosen.split, cells[chosen.split.name])
        return _Read(chosen, labels, splits)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn pyarrow's errors into one sentence that names the file."""
    import pyarrow as pa

    try:
        yield
    except pa.ArrowException as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path} is not a readable parquet file: {reason}") from error
