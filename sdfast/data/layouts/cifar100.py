"""CIFAR-100 as published: the python version (`train`, `test`, `meta`) or the binary one (`train.bin`, `test.bin`).

A row is 32x32 pixels as three planes, red, green and blue (A. Krizhevsky, "Learning Multiple Layers of Features from
Tiny Images", 2009). The classes are the 100 fine ones.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdfast.data.items import Item, Items, Raw, Source
from sdfast.data.labels import check_labels, compare_classes
from sdfast.data.layouts.lists import read_listed
from sdfast.data.layouts.plain_pickle import read_plain_pickle
from sdfast.errors import UserError

KIND = "CIFAR-100"

_PLANES = (3, 32, 32)
_PIXELS = 3 * 32 * 32
_RECORD = 2 + _PIXELS  # coarse label, fine label, pixels
_NAMES = "fine_label_names.txt"
_SPLITS = ("train", "test")


def is_cifar100(path: Path) -> bool:
    """Whether the folder is one of the two unpacked archives."""
    return _is_binary(path) or all((path / name).is_file() for name in (*_SPLITS, "meta"))


def open_cifar100(path: Path) -> Source:
    """Open the folder. All pixels are read at once: 154 MB for train, 31 MB for test.

    Raises:
        UserError: a file that is missing, damaged, or not of CIFAR-100; a label without a name.
    """
    names = [name for _, name in read_listed(path / _NAMES)] if _is_binary(path) else _read_meta(path / "meta")
    read = _read_binary if _is_binary(path) else _read_python
    source = Source(path.name, KIND, names, {})
    for split in _SPLITS:
        file = path / (f"{split}.bin" if _is_binary(path) else split)
        pixels, labels = read(file)
        if not len(pixels):
            raise UserError(f"{file} holds no images; unpack the archive again.")
        checked = check_labels(labels, names, str(file))
        source.splits[split] = Items(
            Item(f"{split}:{row}", label, _reader(pixels, row)) for row, label in enumerate(checked)
        )
    compare_classes(source, strict=True)
    return source


def _is_binary(path: Path) -> bool:
    return all((path / f"{split}.bin").is_file() for split in _SPLITS) and (path / _NAMES).is_file()


def _reader(pixels: NDArray[np.uint8], row: int) -> Callable[[], Raw]:
    """Gives [32, 32, 3]."""
    return lambda: np.ascontiguousarray(pixels[row].transpose(1, 2, 0))


def _read_binary(file: Path) -> tuple[NDArray[np.uint8], list[int | None]]:
    """Pixels [n, 3, 32, 32] and fine labels."""
    data = np.fromfile(file, np.uint8)
    if len(data) % _RECORD:
        raise UserError(f"{file} is damaged: {len(data):,} bytes are not records of {_RECORD:,}; unpack it again.")
    records = data.reshape(-1, _RECORD)
    return records[:, 2:].reshape(-1, *_PLANES), records[:, 1].tolist()


def _read_python(file: Path) -> tuple[NDArray[np.uint8], list[int | None]]:
    """Pixels [n, 3, 32, 32] and fine labels."""
    content = read_plain_pickle(file)
    pixels, labels = _entry(file, content, "data"), _entry(file, content, "fine_labels")
    if not isinstance(pixels, np.ndarray) or pixels.ndim != 2 or pixels.shape[1] != _PIXELS:
        raise UserError(f"{file}: `data` are not rows of {_PIXELS:,} bytes; unpack the archive again.")
    if not isinstance(labels, list) or any(type(label) is not int for label in labels):
        raise UserError(f"{file}: `fine_labels` are not numbers; unpack the archive again.")
    if len(labels) != len(pixels):
        raise UserError(f"{file} has {len(labels):,} labels for its {len(pixels):,} images; unpack the archive again.")
    return pixels.reshape(-1, *_PLANES), list(labels)


def _read_meta(file: Path) -> list[str]:
    names = _entry(file, read_plain_pickle(file), "fine_label_names")
    if not isinstance(names, list) or not all(isinstance(name, (bytes, str)) for name in names):
        raise UserError(f"{file}: `fine_label_names` are not names; unpack the archive again.")
    return [name.decode("utf-8", "replace") if isinstance(name, bytes) else name for name in names]


def _entry(file: Path, content: dict[str, Any], key: str) -> Any:
    if key not in content:
        raise UserError(
            f"{file} has no `{key}`, so it is not a file of CIFAR-100; unpack cifar-100-python.tar.gz again."
        )
    return content[key]
