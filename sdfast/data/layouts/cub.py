"""CUB-200-2011: `images/`, and lists of names, labels and splits by the number of an image."""

from __future__ import annotations

from pathlib import Path

from sdfast.data.items import Source
from sdfast.data.labels import compare_classes
from sdfast.data.layouts.lists import image_items, read_pairs
from sdfast.errors import UserError

KIND = "CUB-200-2011"

_IMAGES, _LABELS, _SPLIT, _CLASSES = "images.txt", "image_class_labels.txt", "train_test_split.txt", "classes.txt"
_SPLIT_OF = {"1": "train", "0": "test"}


def is_cub(path: Path) -> bool:
    """Whether the folder has the lists."""
    return all((path / name).is_file() for name in (_IMAGES, _LABELS, _SPLIT))


def open_cub(path: Path) -> Source:
    """Open the folder.

    Raises:
        UserError: a list that is missing or has other images than `images.txt`, a class that `classes.txt` lacks, a
            split that is neither 0 nor 1, or a listed image that is not there.
    """
    names = _read(path / _CLASSES)
    number = {key: index for index, key in enumerate(names)}
    images = _read(path / _IMAGES)
    labels, parts = (_read_for(images, path / name) for name in (_LABELS, _SPLIT))
    rows: dict[str, list[tuple[str, int]]] = {"train": [], "test": []}
    for key, name in images.items():
        if labels[key] not in number:
            raise UserError(
                f"{path / _LABELS} gives image {key} the class {labels[key]}, which is not in {_CLASSES}; "
                "unpack the archive again."
            )
        if parts[key] not in _SPLIT_OF:
            raise UserError(f"{path / _SPLIT} gives image {key} {parts[key]!r}, neither 1 (train) nor 0 (test).")
        rows[_SPLIT_OF[parts[key]]].append((f"images/{name}", number[labels[key]]))
    source = Source(path.name, KIND, list(names.values()), {})
    for split, listed in rows.items():
        source.splits[split] = image_items(path, listed, path / _IMAGES if listed else path / _SPLIT)
    compare_classes(source, strict=True)
    return source


def _read(file: Path) -> dict[str, str]:
    """What the file says of each number, in its order."""
    found: dict[str, str] = {}
    for line, key, value in read_pairs(file):
        if key in found:
            raise UserError(f"{file} line {line} has the number {key} a second time; unpack the archive again.")
        found[key] = value
    return found


def _read_for(images: dict[str, str], file: Path) -> dict[str, str]:
    found = _read(file)
    if other := sorted(found.keys() ^ images.keys()):
        raise UserError(
            f"{file} has {len(found):,} images and {_IMAGES} {len(images):,}; image {other[0]} is in one of them "
            "alone: unpack the archive again."
        )
    return found
