"""Read a pickle of numbers, texts, lists, dicts and arrays of bytes, and refuse one that asks for anything else.

A pickle may name any function and have it called. Here it can name three things, those that an array is pickled with,
and gets stand-ins that keep what they are given: no function of NumPy or of any other library is called in its name.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdfast.errors import UserError, said


class _Refused(Exception):
    """The pickle names something that plain data has no use for."""


class _Array:
    """Stands in for an array of unsigned bytes; `value` is [*shape] uint8 when its state is there."""

    __slots__ = ("value",)

    value: NDArray[np.uint8]

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        if not isinstance(dtype, _Bytes) or not isinstance(data, bytes):
            raise ValueError("an array of something else than bytes")
        self.value = np.frombuffer(data, np.uint8).reshape(shape, order="F" if fortran else "C")


class _Bytes:
    """Stands in for the element type "unsigned byte"."""

    __slots__ = ()

    def __setstate__(self, state: Any) -> None:
        """Byte order and the like, which one byte has not."""


def _reconstruct(*_: Any) -> _Array:
    return _Array()


def _ndarray(*_: Any) -> None:
    raise _Refused("a call of numpy.ndarray")


def _dtype(name: Any, *_: Any) -> _Bytes:
    if name not in ("u1", b"u1"):
        raise ValueError("an array of something else than bytes")
    return _Bytes()


_STAND_INS = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _ndarray,
    ("numpy", "dtype"): _dtype,
}


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        """The stand-in of that name."""
        try:
            return _STAND_INS[module, name]
        except KeyError:
            raise _Refused(f"{module}.{name}") from None


def read_plain_pickle(path: Path) -> dict[str, Any]:
    """The dict that a pickle holds; arrays in it are [*shape] uint8, and texts that Python 2 wrote are bytes.

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
