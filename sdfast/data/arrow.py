"""Parquet files, and Hugging Face data sets as they are saved or on the hub; images stay encoded.

Their columns have types, and their contents are read block by block.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdfast.data.columns import Chosen, Column, choose_columns, label_notes, named_cells
from sdfast.data.config import DataConfig
from sdfast.data.items import SPLITS, Cell, Source, read_items
from sdfast.data.modality import Held, Modality
from sdfast.data.records import Rows
from sdfast.data.splits import files_by_split, split_name
from sdfast.errors import UserError
from sdfast.regular import refuse

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa
    import pyarrow.parquet as pq

_BLOCK = 64  # rows read at a time
_Look = tuple[Chosen, dict[str, list[Any]]]  # the columns, and the cells of those beside the contents


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
    return _open(source, {split: [_File(*file) for file in each] for split, each in found.items()}, options, str(path))


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
    parts: dict[str, datasets.Dataset] = dict(loaded) if isinstance(loaded, dict) else {"train": loaded}
    known = {split_name(part): part for part in parts if split_name(part) is not None}
    if not known and len(parts) == 1:
        known = {"train": next(iter(parts))}
    if not known:
        raise UserError(f"{name} has no split called train, val or test; its splits are {', '.join(parts)}.")
    source = Source(name, "Hugging Face data set", None, {}, modality=modality)
    if unused := sorted(set(parts) - set(known.values())):
        source.warnings.append(f"Splits of {name} that are not used: {', '.join(unused)}.")
    found = {split: known[split] for split in SPLITS if split in known and len(parts[known[split]])}
    return _open(
        source, {split: [_Table(parts[part], name, part, folder)] for split, part in found.items()}, options, name
    )


def _open(source: Source, parts: Mapping[str, Sequence[_File | _Table]], options: DataConfig, path: str) -> Source:
    """The source of the parts of each split; `path` is it in a sentence."""
    rows, chosen = Rows(), None
    for split, each in parts.items():
        for part in each:
            choose = partial(choose_columns, options=options, where=part.where, modality=source.modality)
            own, cells = part.look(choose)
            chosen = own.joined(chosen, part.where)
            rows.add(
                split,
                [None] * part.rows if own.label is None else cells[own.label.name],
                None if own.split is None else named_cells(own.split, cells[own.split.name]),
            )
    if chosen is None or not any(rows.labels.values()):
        raise UserError(f"{path} has no rows.")
    content, label, names = chosen.content.name, chosen.label, chosen.class_names
    rows.column = None if chosen.split is None else chosen.split.name
    source.warnings += label_notes(chosen, options, source.modality, source.name)
    return rows.fill(
        source,
        lambda split, labels: read_items(labels, partial(_cells, parts[split], content)),
        options,
        options.unseen,
        names,
        source.name if label is None else f"{source.name}, column {label.name!r}",
        strict=names is None,
    )


def _cells(parts: Sequence[_File | _Table], column: str, start: int) -> Iterator[Cell]:
    for part in parts:
        if start < part.rows:
            yield from part.cells(column, start)
        start = max(start - part.rows, 0)


class _File:
    """A parquet file, with its name relative to the source.

    Attributes:
        where: it is, for sentences.
        rows: how many it has, when `look` has seen them.
    """

    rows = 0

    def __init__(self, path: Path, name: str) -> None:
        self.where, self._path, self._name = str(path), path, name

    def look(self, choose: Callable[[list[Column]], Chosen]) -> _Look:
        """Choose among the columns, and read the cells of labels and splits."""
        with self._opened() as file:
            chosen = choose(parquet_columns(file.schema_arrow))
            table = file.read(columns=chosen.aside)
            self.rows = file.metadata.num_rows
            return chosen, {name: table.column(name).to_pylist() for name in chosen.aside}

    def cells(self, column: str, start: int) -> Iterator[Cell]:
        """The cells of a column from a row on."""
        with self._opened() as file:
            batches = file.iter_batches(_BLOCK, columns=[column])
            cells = (cell for batch in batches for cell in batch.column(0).to_pylist())
            for row, cell in islice(enumerate(cells), start, None):
                yield f"{self._name}:{row}", cell, self._path.parent

    @contextlib.contextmanager
    def _opened(self) -> Iterator[pq.ParquetFile]:
        """The file; pyarrow's errors become one sentence that names it."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(self._path) as file:
                yield file
        except pa.ArrowException as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"{self._path} is not a readable parquet file: {reason}") from error


class _Table:
    """The same for a split of a Hugging Face data set, by its own name; paths in it are relative to `folder`."""

    def __init__(self, table: datasets.Dataset, source: str, name: str, folder: Path) -> None:
        self.where, self.rows = f"{source} ({name})", len(table)
        self._table, self._name, self._folder = table, name, folder

    def look(self, choose: Callable[[list[Column]], Chosen]) -> _Look:
        """Choose among the columns, and take the cells of labels and splits."""
        chosen = choose(dataset_columns(self._table.features))
        return chosen, {name: list(self._table[name]) for name in chosen.aside}

    def cells(self, column: str, start: int) -> Iterator[Cell]:
        """The cells of a column from a row on, images as they are encoded."""
        import datasets

        table = self._table.select_columns([column])
        if isinstance(table.features[column], datasets.Image):
            table = table.cast_column(column, datasets.Image(decode=False))
        for first in range(start, self.rows, _BLOCK):
            for row, cell in enumerate(table[first : first + _BLOCK][column], first):
                yield f"{self._name}:{row}", cell, self._folder


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
        feature = feature if isinstance(feature, dict) else {}
        kind, names = feature.get("_type"), None
        holds: Held = "other" if pa.types.is_nested(entry.type) else "scalar"
        if kind == "ClassLabel" and feature.get("names"):
            holds, names = "classes", tuple(feature["names"])
        elif pa.types.is_struct(entry.type) and entry.type.get_field_index("bytes") >= 0:
            holds = "image"
        elif pa.types.is_binary(entry.type) or pa.types.is_large_binary(entry.type):
            holds = "image" if kind == "Image" else "bytes"
        elif pa.types.is_string(entry.type) or pa.types.is_large_string(entry.type):
            holds = "text"
        columns.append(Column(entry.name, holds, names))
    return columns


def dataset_columns(features: datasets.Features) -> list[Column]:
    """The columns of a data set by their feature types."""
    import datasets

    kinds: dict[str, Held] = dict.fromkeys(("binary", "large_binary"), "bytes")
    kinds |= dict.fromkeys(("string", "large_string"), "text")
    columns = []
    for name, feature in features.items():
        holds: Held = "image" if isinstance(feature, dict) and "bytes" in feature else "other"
        if isinstance(feature, datasets.Image):
            holds = "image"
        elif isinstance(feature, datasets.ClassLabel):
            holds = "classes"
        elif isinstance(feature, datasets.Value):
            holds = kinds.get(feature.dtype, "scalar")
        columns.append(Column(name, holds, tuple(feature.names) if holds == "classes" else None))
    return columns


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".") + "."
