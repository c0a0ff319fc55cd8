"""What every kind of source gives: named splits of items, each a name, a label and a way to read its bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sdfast.data.modality import IMAGES, Modality
from sdfast.data.parallel import ordered_map
from sdfast.data.problem import SINGLE, Label, ProblemType
from sdfast.errors import RunError, said
from sdfast.regular import of_the_file, read_regular

Raw = bytes | NDArray[np.uint8]
LARGEST_FILE = 1 << 30  # bytes of one image's file

SPLITS = ("train", "val", "test")
UNLABELLED = "unlabelled"  # beside the splits of a source: what joins train without a label


class Item(NamedTuple):
    """One image or document of a source.

    Attributes:
        name: for messages and predictions: relative to the source, '/' between folders.
        label: class number, or ascending ones where a row has several, or numbers; None when it has none.
        read: gives the encoded file's bytes, uint8 pixels [H, W] or [H, W, C], or a document in UTF-8; OSError when it
            cannot be read.
        banner: of an image, so many rows of pixels at its bottom are no part of the picture and are cut off.
        held: so many characters of it are in memory before it is read.
        group: whose it is (`data.group`); None where it has none, or nobody asks.
    """

    name: str
    label: Label
    read: Callable[[], Raw]
    banner: int = 0
    held: int = 0
    group: str | None = None


def file_reader(path: Path, largest: int = LARGEST_FILE) -> Callable[[], Raw]:
    """Reads a regular file, by a link too, of at most so many bytes; OSError otherwise (see `read_regular`)."""
    return partial(read_regular, path, largest)


def cell_item(name: str, cell: Any, folder: Path | None = None) -> Item:
    """The item of one cell of a table, without a label.

    The cell is a text (half of a surrogate pair stays, for the pack to refuse), raw bytes, {"bytes": ..., "path": ...}
    or None; a relative path starts in `folder`.
    """
    if isinstance(cell, str):
        return Item(name, None, partial(cell.encode, "utf-8", "surrogatepass"), held=len(cell))
    content, path = (cell.get("bytes"), cell.get("path")) if isinstance(cell, dict) else (cell, None)
    if content is not None:
        return Item(name, None, partial(bytes, content))
    return Item(name, None, file_reader((folder or Path()) / path) if path else _nothing)


def _nothing() -> Raw:
    raise OSError("the row has no image and no text")


class ItemList:
    """The items of one split in their fixed order. Iterating reads ahead in small blocks; memory stays bounded.

    Args:
        labels: one per item, known without reading any.
        files: each gives its items, one file's after the other's and read anew each time; whatever label and group
            they bear, they get theirs of `labels` and `groups`.
        groups: one per item, None for an item without one; None where nobody asks.
    """

    def __init__(
        self,
        labels: list[Label],
        *files: Callable[[], Iterable[Item]],
        groups: list[str | None] | None = None,
    ) -> None:
        self.labels = labels
        self.groups = groups
        self._files = files

    def __len__(self) -> int:
        return len(self.labels)

    def __iter__(self) -> Iterator[Item]:
        items = chain.from_iterable(items() for items in self._files)
        groups = self.groups or repeat(None)
        known = zip(items, self.labels, groups, strict=False)
        return (item._replace(label=label, group=group) for item, label, group in known)

    def __getitem__(self, index: int) -> Item:
        return next(islice(self, range(len(self))[index], None))


def known_items(items: Iterable[Item] = ()) -> ItemList:
    """An `ItemList` of items that are all known, with their labels; only their bytes are read later."""
    known = list(items)
    return ItemList([item.label for item in known], lambda: known)


def chosen_items(
    lists: Mapping[str, ItemList], rows: Sequence[tuple[str, int]], numbers: Mapping[int, int] | None = None
) -> ItemList:
    """An `ItemList`: some items of other lists. Iterating reads each of the other lists once.

    Args:
        lists: by name.
        rows: (name of the list, index in it) of each item, in the order of the lists and of their items.
        numbers: the class number in place of each class number; as they are when not given.
    """

    def items() -> Iterator[Item]:
        for name, each in lists.items():
            if wanted := {index for of, index in rows if of == name}:
                yield from (item for index, item in enumerate(each) if index in wanted)

    labels = [lists[name].labels[index] for name, index in rows]
    if numbers is not None:
        labels = [_renumbered(label, numbers) for label in labels]
    grouped = any(each.groups is not None for each in lists.values())
    groups = [_group_of(lists[name], index) for name, index in rows] if grouped else None
    return ItemList(labels, items, groups=groups)


def _group_of(items: ItemList, index: int) -> str | None:
    return None if items.groups is None else items.groups[index]


def _renumbered(label: Label, numbers: Mapping[int, int]) -> Label:
    if isinstance(label, tuple):
        return tuple(numbers[int(number)] for number in label)
    return None if label is None else numbers[label]


@dataclass
class Source:
    """An opened source.

    Attributes:
        name: what a person calls it: the last part of the path, or the hub id; never an absolute path.
        kind: "image folder", "text folder", "csv", "jsonl", "parquet", "Hugging Face data set", "IDX", ...
        class_names: name of each class number (of labels that are numbers: of each number), or None when nothing has a
            label.
        splits: "train", "val" and "test", those that exist; and "unlabelled", the items of further sources that join
            train without a label, where there are any.
        warnings: sentences about what was left out or looks odd.
        modality: what its items are.
        problem: what their labels are.
    """

    name: str
    kind: str
    class_names: list[str] | None
    splits: dict[str, ItemList]
    warnings: list[str] = field(default_factory=list)
    modality: Modality = IMAGES
    problem: ProblemType = SINGLE

    def content_digest(self, threads: int = 1) -> str:
        """Hexadecimal SHA-256 over the class names and, in order, every item's name, bytes, label and group.

        Equal digests mean that a pack made from this source is still up to date. Paths outside the source, times and
        library versions do not enter.
        """
        digest = SourceDigest(self.class_names)
        for split, items in self.splits.items():
            for record in ordered_map(lambda item: item_record(item, read_item(item)), items, threads):
                digest.add(split, record)
        return digest.hexdigest()


class SourceDigest:
    """The running form of `Source.content_digest`, for a reader that has the bytes in its hands anyway."""

    def __init__(self, class_names: list[str] | None) -> None:
        self._class_names = class_names
        self._splits = {split: hashlib.sha256() for split in SPLITS}

    def add(self, split: str, record: bytes) -> None:
        """Add the next item of `split` by its `item_record`; splits may be interleaved."""
        self._splits.setdefault(split, hashlib.sha256()).update(record)

    def hexdigest(self) -> str:
        """The digest of everything added."""
        whole = hashlib.sha256(json.dumps(["sdfast source 1", self._class_names]).encode())
        for split in (*SPLITS, UNLABELLED):
            if split in self._splits:
                whole.update(self._splits[split].digest())
        return whole.hexdigest()


def item_record(item: Item, raw: Raw | OSError) -> bytes:
    """72 bytes that change when the item's name, bytes, label or group do; `raw` is what its `read` gave or raised."""
    name = hashlib.sha256(item.name.encode("utf-8", "surrogateescape"))
    content = hashlib.sha256()
    if isinstance(raw, OSError):
        content.update(b"unreadable " + type(raw).__name__.encode())
    elif isinstance(raw, np.ndarray):
        content.update(f"pixels {raw.shape} ".encode())
        content.update(np.ascontiguousarray(raw).data)
    else:
        content.update(b"file ")
        content.update(raw)
    if item.banner:
        content.update(f" without a banner of {item.banner}".encode())
    if item.group is not None:
        content.update(b" of the group " + item.group.encode("utf-8", "surrogateescape"))
    label = -1 if item.label is None else item.label
    if isinstance(label, tuple):
        return name.digest() + content.digest() + hashlib.sha256(json.dumps(label).encode()).digest()[:8]
    return name.digest() + content.digest() + label.to_bytes(8, "little", signed=True)


def read_item(item: Item) -> Raw | OSError:
    """The item's content, or what is wrong with its file (it is missing, may not be read, is none).

    Raises:
        RunError: the file may be whole, and the system could not read it now.
    """
    try:
        return item.read()
    except OSError as error:
        if not of_the_file(error):
            raise RunError(
                f"{error.filename or item.name} cannot be read: {said(error)}. Run the same command again, or remove "
                "the file if that is said each time."
            ) from error
        return error
