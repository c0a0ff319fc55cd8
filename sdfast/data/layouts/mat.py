"""MATLAB files (version 5 to 7) in which data sets list their images and labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sdfast.errors import UserError


def read_mat(path: Path, *names: str) -> list[NDArray[Any]]:
    """The variables of these names, each flattened to one dimension.

    Raises:
        UserError: no such file, not a MATLAB file, or one without such a variable.
    """
    from scipy.io import loadmat

    if not path.is_file():
        raise UserError(f"{path} is missing; unpack or download it again.")
    try:
        found = loadmat(path, variable_names=names)
    except Exception as error:  # scipy raises its own, ValueError, TypeError, zlib.error, ... for a damaged file
        why = " ".join(str(error).split())
        raise UserError(f"{path} cannot be read as a MATLAB file ({why}); download it again.") from error
    for name in names:
        if name not in found:
            raise UserError(f"{path} has no variable {name!r}; it is not the published file: download it again.")
    return [np.ravel(found[name]) for name in names]


def as_numbers(path: Path, name: str, values: NDArray[Any]) -> list[int]:
    """The values of a variable as whole numbers.

    Raises:
        UserError: one that is not.
    """
    if values.dtype.kind not in "iuf" or np.any(values != np.floor(values)):
        raise UserError(f"{name} of {path} are not whole numbers; download the file again.")
    return [int(value) for value in values]


def as_texts(path: Path, name: str, values: NDArray[Any]) -> list[str]:
    """The values of a variable that holds a text in each cell.

    Raises:
        UserError: a cell with something else.
    """
    texts = [np.ravel(value) for value in values]
    if any(text.size != 1 or text.dtype.kind != "U" for text in texts):
        raise UserError(f"{name} of {path} are not texts; download the file again.")
    return [str(text[0]) for text in texts]
