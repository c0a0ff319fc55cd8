"""IDX files, the format of MNIST and its successors, plain or gzip-compressed.

Format: two zero bytes, the element type (0x08: unsigned byte), the number of dimensions, then one big-endian 32-bit
size per dimension and the elements (Y. LeCun, C. Cortes, C. Burges, "The MNIST database of handwritten digits").
"""

from __future__ import annotations

import gzip
import math
import os
import re
import struct
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sdfast.data.config import NO_COLUMN, DataConfig
from sdfast.data.items import SPLITS, Item, Source
from sdfast.data.lines import readable
from sdfast.data.records import Rows, split_name
from sdfast.errors import UserError
from sdfast.regular import open_regular

_IMAGES = re.compile(r"(?P<prefix>.*?)[-.]?images[-.]idx3-ubyte(\.gz)?$", re.IGNORECASE)
_MOST_UNPACKED = 1100  # bytes that a byte of a gzip file can stand for (1,032 in long runs)
_BLOCK = 1 << 20  # bytes read at a time
_SPLIT = re.compile(r"(?:^|[-_.])([a-zA-Z0-9]+)$")


def is_idx_images(path: Path) -> bool:
    """Whether the file is called as IDX images are: `...images-idx3-ubyte`, with or without `.gz`."""
    return _IMAGES.match(path.name) is not None


def open_idx(path: Path, options: DataConfig) -> Source:
    """Open one IDX file of images, or the folder that holds `train-` and `t10k-` (= test) pairs.

    The labels are the file of the same name with `labels-idx1` for `images-idx3`; without it there are none.

    Raises:
        UserError: a file that is damaged, not IDX, or with fewer or more labels than images; two files for one split.
    """
    found = _image_files(path) if path.is_dir() else {"train": path}
    rows = Rows()
    for split in (split for split in SPLITS if split in found):
        labels = None if options.label_key == NO_COLUMN else _labels_of(found[split])
        numbers = None if labels is None else read_idx(labels, 1).tolist()
        images = read_idx(found[split], 3, None if numbers is None else (f"{labels}", len(numbers)))
        items = partial(_items, found[split].name, images)
        rows.add(split, [None] * len(images) if numbers is None else numbers, items)
    if not any(rows.labels.values()):
        raise UserError(f"{path} holds no images.")
    return rows.fill(Source(path.name, "IDX", None, {}), options, options.unseen, strict=False)


def _items(name: str, images: NDArray[np.uint8]) -> Iterator[Item]:
    return (Item(f"{name}:{row}", None, partial(images.__getitem__, row)) for row in range(len(images)))


def read_idx(path: Path, dimensions: int, labels: tuple[str, int] | None = None) -> NDArray[np.uint8]:
    """The unsigned bytes of an IDX file, uint8 with the sizes that the file names; `.gz` is decompressed.

    Args:
        path: the file.
        dimensions: how many it must have.
        labels: where those of its items are, and how many.

    Raises:
        UserError: damaged, another element type, another number of dimensions or of items, or not as long as it says.
    """
    header, packed = 4 + 4 * dimensions, path.suffix == ".gz"
    with readable(path), open_regular(path) as plain, gzip.open(plain) if packed else plain as file:
        stored = os.fstat(plain.fileno()).st_size
        start = file.read(_BLOCK)
        if len(start) < header or start[:4] != bytes((0, 0, 8, dimensions)):
            raise UserError(f"{path} is not an IDX file of unsigned bytes with {dimensions} dimensions.")
        shape = struct.unpack(f">{dimensions}I", start[4:header])
        size = math.prod(shape)
        if size > (stored * _MOST_UNPACKED if packed else stored):  # before so much is allocated
            raise UserError(f"{path} is damaged: it says {size} bytes of data, and has {stored} in all.")
        if labels is not None and labels[1] != shape[0]:
            raise UserError(f"{labels[0]} has {labels[1]} labels for the {shape[0]} images of {path.name}.")
        try:
            data, found, block = np.empty(size, np.uint8), 0, start[header:]
            while block and found + len(block) <= size:
                data[found : found + len(block)] = np.frombuffer(block, np.uint8)
                found += len(block)
                block = file.read(min(_BLOCK, size - found))
            more = block or file.read(1)
        except MemoryError:
            raise UserError(f"{path} holds {size:,} bytes of data, more than there is memory for; cut it.") from None
    if more or found != size:
        raise UserError(f"{path} is damaged: it says {size} bytes of data and has {'more' if more else found}.")
    return data.reshape(shape)


def _image_files(folder: Path) -> dict[str, Path]:
    files = sorted(file for file in folder.iterdir() if file.is_file() and is_idx_images(file))
    plain = {file.name for file in files}
    files = [file for file in files if not (file.suffix == ".gz" and file.name[:-3] in plain)]
    found: dict[str, Path] = {}
    for file in files:
        split = _split_of(file) or ("train" if len(files) == 1 else None)
        if split is None:
            raise UserError(
                f"{file} begins with neither train-, t10k-, test- nor val-; pass the file itself as --data."
            )
        if split in found:
            raise UserError(f"{folder} has two files of {split} images, {found[split].name} and {file.name}; keep one.")
        found[split] = file
    return found


def _split_of(file: Path) -> str | None:
    match = _IMAGES.match(file.name)
    last = _SPLIT.search(match.group("prefix")) if match else None
    if last is None:
        return None
    return "test" if last.group(1).lower() == "t10k" else split_name(last.group(1))


def _labels_of(images: Path) -> Path | None:
    name = re.sub("images([-.])idx3", r"labels\1idx1", images.name, flags=re.IGNORECASE)
    stem = name.removesuffix(".gz")
    return next((file for same in (name, stem, f"{stem}.gz") if (file := images.with_name(same)).is_file()), None)
