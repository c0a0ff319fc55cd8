"""CIFAR-100 as published: the python version (`train`, `test`, `meta`) or the binary one (`train.bin`, `test.bin`).

A row is 32x32 pixels as three planes, red, green and blue (A. Krizhevsky, "Learning Multiple Layers of Features from
Tiny Images", 2009). The classes are the 100 fine ones.

The files of the python version are pickles, and a pickle may name any function and have it called. Here it can name
three things, those that an array is pickled with, and gets stand-ins that keep what they are given: no function of
NumPy or of any other library is called in its name.
"""

from __future__ import annotations

import pickle
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdfast.data.items import Item, Source, known_items
from sdfast.data.labels import check_labels, compare_classes
from sdfast.data.lines import read_lines
from sdfast.errors import UserError, said

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
    binary = _is_binary(path)
    names = (
        [text.strip() for _, text in read_lines(path / _NAMES) if text.strip()] if binary else _read_meta(path / "meta")
    )
    source = Source(path.name, "CIFAR-100", names, {})
    for split in _SPLITS:
        file = path / (f"{split}.bin" if binary else split)
        pixels, labels = _read_binary(file) if binary else _read_python(file)
        if not len(pixels):
            raise UserError(f"{file} holds no images; unpack the archive again.")
        checked = check_labels(labels, names, str(file))
        images = zip(checked, pixels.transpose(0, 2, 3, 1), strict=True)  # [32, 32, 3] each
        source.splits[split] = known_items(
            Item(f"{split}:{row}", label, partial(np.ascontiguousarray, image))
            for row, (label, image) in enumerate(images)
        )
    compare_classes(source, strict=True)
    return source


def _is_binary(path: Path) -> bool:
    return all((path / f"{split}.bin").is_file() for split in _SPLITS) and (path / _NAMES).is_file()


def _read_binary(file: Path) -> tuple[NDArray[np.uint8], list[int | None]]:
    """Pixels [n, 3, 32, 32] and fine labels."""
    data = np.fromfile(file, np.uint8)
    if len(data) % _RECORD:
        raise UserError(f"{file} is damaged: {len(data):,} bytes are not records of {_RECORD:,}; unpack it again.")
    records = data.reshape(-1, _RECORD)
    return records[:, 2:].reshape(-1, *_PLANES), records[:, 1].tolist()


def _read_python(file: Path) -> tuple[NDArray[np.uint8], list[int | None]]:
    """Pixels [n, 3, 32, 32] and fine labels."""
    pixels, labels = _entries(file, "data", "fine_labels")
    if not isinstance(pixels, np.ndarray) or pixels.ndim != 2 or pixels.shape[1] != _PIXELS:
        raise UserError(f"{file}: `data` are not rows of {_PIXELS:,} bytes; unpack the archive again.")
    if not isinstance(labels, list) or any(type(label) is not int for label in labels):
        raise UserError(f"{file}: `fine_labels` are not numbers; unpack the archive again.")
    if len(labels) != len(pixels):
        raise UserError(f"{file} has {len(labels):,} labels for its {len(pixels):,} images; unpack the archive again.")
    return pixels.reshape(-1, *_PLANES), list(labels)


def _read_meta(file: Path) -> list[str]:
    (names,) = _entries(file, "fine_label_names")
    if not isinstance(names, list) or not all(isinstance(name, (bytes, str)) for name in names):
        raise UserError(f"{file}: `fine_label_names` are not names; unpack the archive again.")
    return [name.decode("utf-8", "replace") if isinstance(name, bytes) else name for name in names]


def _entries(file: Path, *keys: str) -> list[Any]:
    content = read_plain_pickle(file)
    if absent := [key for key in keys if key not in content]:
        raise UserError(
            f"{file} has no `{absent[0]}`, so it is not a file of CIFAR-100; unpack cifar-100-python.tar.gz again."
        )
    return [content[key] for key in keys]


class _Refused(Exception):
    """The pickle names something that plain data has no use for."""


class _Bytes:
    """Stands in for the element type "unsigned byte", whose state (byte order and the like) one byte has not."""

    __slots__ = ()

    def __init__(self, name: Any, *_: Any) -> None:
        if name not in ("u1", b"u1"):
            raise ValueError("an array of something else than bytes")

    def __setstate__(self, state: Any) -> None: ...


class _Array:
    """Stands in for an array of unsigned bytes; `value` is [*shape] uint8 when its state is there."""

    __slots__ = ("value",)

    value: NDArray[np.uint8]

    def __init__(self, *_: Any) -> None: ...

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        if not isinstance(dtype, _Bytes) or not isinstance(data, bytes):
            raise ValueError("an array of something else than bytes")
        self.value = np.frombuffer(data, np.uint8).reshape(shape, order="F" if fortran else "C")


def _ndarray(*_: Any) -> None:
    raise _Refused("a call of numpy.ndarray")


_STAND_INS = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _ndarray,
    ("numpy", "dtype"): _Bytes,
}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """The stand-in of that name."""
        try:
            return _STAND_INS[module, name]
        except KeyError:
            raise _Refused(f"{module}.{name}") from None


def read_plain_pickle(path: Path) -> dict[str, Any]:
    """The dict that a pickle of numbers, texts, lists, dicts and arrays of bytes holds.

    Arrays in it are [*shape] uint8, and texts that Python 2 wrote are bytes.

    Raises:
        UserError: no such file, not a whole pickle, one that holds no dict with texts for keys, or one that names
            anything but an array of bytes.
    """
    if not path.is_file():
        raise UserError(f"{path} is missing; unpack the whole archive again.")
    try:
        with open(path, "rb") as file:
            found = _PlainUnpickler(file, encoding="bytes").load()
        return {_text(key): value.value if isinstance(value, _Array) else value for key, value in found.items()}
    except _Refused as error:
        raise UserError(
            f"{path} is a pickle that asks for {error}, which plain data never does, so it is not the published file; "
            "nothing of it was run: download it again."
        ) from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {said(error)}.") from error
    except Exception as error:  # a damaged pickle makes the unpickler raise almost anything
        why = " ".join(str(error).split())
        raise UserError(f"{path} is not a whole pickle of plain data ({why}); unpack the archive again.") from error


def _text(key: Any) -> str:
    text = key.decode() if isinstance(key, bytes) else key
    if not isinstance(text, str):
        raise ValueError(f"the key {key!r} is no text")
    return text
