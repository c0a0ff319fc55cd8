"""Hugging Face data sets, saved on disk or from the hub; the `datasets` library reads, images stay encoded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdfast.data.columns import Chosen, Column, cell_reader, choose_columns, held, label_notes, named_cells
from sdfast.data.config import DataConfig
from sdfast.data.items import SPLITS, Item, Source, split_name
from sdfast.data.labels import Value, compare_classes, number_labels
from sdfast.data.modality import Held, Modality
from sdfast.data.split_column import use_split_column
from sdfast.errors import UserError

if TYPE_CHECKING:
    import datasets

_BLOCK = 64  # rows read at a time
_KIND = "Hugging Face data set"


class DatasetItems:
    """An `ItemList` over the rows of a `datasets.Dataset`; its images are not decoded."""

    def __init__(self, rows: datasets.Dataset, column: str, split: str, labels: list[int | None], folder: Path) -> None:
        self._rows = rows
        self._column = column
        self._split = split
        self._folder = folder
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[Item]:
        for start in range(0, len(self), _BLOCK):
            for offset, cell in enumerate(self._rows[start : start + _BLOCK][self._column]):
                yield self._item(start + offset, cell)

    def __getitem__(self, index: int) -> Item:
        index = range(len(self))[index]
        return self._item(index, self._rows[index][self._column])

    def _item(self, row: int, cell: Any) -> Item:
        return Item(f"{self._split}:{row}", self.labels[row], cell_reader(cell, self._folder), held=held(cell))


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
    return _open(path.name, loaded, options, path, modality)


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
    return _open(spec, loaded, options, Path.cwd(), modality)


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


def _open(name: str, loaded: Any, options: DataConfig, folder: Path, modality: Modality) -> Source:
    parts: dict[str, datasets.Dataset] = dict(loaded) if isinstance(loaded, dict) else {"train": loaded}
    known = {split_name(part): part for part in parts if split_name(part) is not None}
    if not known and len(parts) == 1:
        known = {"train": next(iter(parts))}
    if not known:
        raise UserError(f"{name} has no split called train, val or test; its splits are {', '.join(parts)}.")
    source = Source(name, _KIND, None, {}, modality=modality)
    unused = sorted(set(parts) - set(known.values()))
    if unused:
        source.warnings.append(f"Splits of {name} that are not used: {', '.join(unused)}.")
    splits = {split: parts[known[split]] for split in SPLITS if split in known and len(parts[known[split]])}
    if not splits:
        raise UserError(f"{name} has no rows.")
    chosen: Chosen | None = None
    labels: dict[str, list[Value]] = {}
    cells: dict[str, list[Any]] = {}
    for split, rows in splits.items():
        where = f"{name} ({known[split]})"
        own = choose_columns(dataset_columns(rows.features), options, where, modality)
        chosen = own.joined(chosen, where)
        labels[split] = [None] * len(rows) if own.label is None else list(rows[own.label.name])
        cells[split] = [split] * len(rows) if own.split is None else named_cells(own.split, list(rows[own.split.name]))
    assert chosen is not None
    where = name if chosen.label is None else f"{name}, column {chosen.label.name!r}"
    source.class_names, numbers = number_labels(labels, chosen.class_names, where)
    for split, rows in splits.items():
        encoded = _encoded(rows.select_columns([chosen.content.name]), chosen.content)
        source.splits[split] = DatasetItems(encoded, chosen.content.name, known[split], numbers[split], folder)
    source.warnings += label_notes(chosen, options, modality, name)
    use_split_column(source, chosen.split.name if chosen.split else None, cells, options)
    compare_classes(source, strict=chosen.class_names is None, unseen=options.unseen)
    return source


def dataset_columns(features: datasets.Features) -> list[Column]:
    """The columns of a data set by their feature types."""
    import datasets

    columns = []
    for name, feature in features.items():
        if isinstance(feature, datasets.Image):
            columns.append(Column(name, "image"))
        elif isinstance(feature, datasets.ClassLabel):
            columns.append(Column(name, "classes", tuple(feature.names)))
        elif isinstance(feature, datasets.Value):
            kinds: dict[str, Held] = {
                "binary": "bytes",
                "large_binary": "bytes",
                "string": "text",
                "large_string": "text",
            }
            columns.append(Column(name, kinds.get(feature.dtype, "scalar")))
        else:
            columns.append(Column(name, "image" if isinstance(feature, dict) and "bytes" in feature else "other"))
    return columns


def _encoded(rows: datasets.Dataset, content: Column) -> datasets.Dataset:
    import datasets

    if isinstance(rows.features[content.name], datasets.Image):
        return rows.cast_column(content.name, datasets.Image(decode=False))
    return rows


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".") + "."
