"""Files of torch.save: tensors, and the values that training scripts save beside them; no code in them is run.

torch's weights-only loading calls what is on its list alone. Of what scripts keep beside weights a few harmless kinds
are added here; for all but `argparse.Namespace` something of ours stands in, so that nothing named by a file is called.
"""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import torch

from sdfast.durable import numbered_errors
from sdfast.errors import UserError

# Where repositories keep their weights, the first that is there. A teacher is the mean of its students (DINO), and so
# is a target encoder (I-JEPA): what those projects evaluate.
_WRAPPERS = (
    *("state_dict", "model", "model_state_dict", "module"),
    *("teacher", "target_encoder", "student", "encoder", "backbone", "network", "net"),
)
ARGUMENTS = ("args", "hyper_parameters")  # of a script, and of Lightning


class _NumpyType:
    """What a file says of a numpy dtype; it is none."""

    def __init__(self, code: str = "", *_: Any) -> None:
        self.code, self.order = str(code), "="

    def __setstate__(self, state: Any) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else "="
        self.order = order if order in ("<", ">") else "="


class _NumpyArray:
    """In the place of a numpy array, as in the state of a random generator: its values are not kept."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


def _number(kind: Any, data: Any = b"") -> Any:
    """A numpy scalar, such as the best accuracy so far, as a number of Python; None for one that is no number."""
    if not isinstance(kind, _NumpyType) or not isinstance(data, bytes):
        return None
    if re.fullmatch(r"[biufc]\d{1,2}", kind.code) is None:
        return None
    try:
        return np.frombuffer(data, np.dtype(kind.order + kind.code))[0].item()
    except (TypeError, ValueError, IndexError):
        return None


def _allowed() -> list[Any]:
    """What weights-only loading may call beyond torch's own list: a callable, and the name that it has in files."""
    paths: dict[str, Any] = {"PosixPath": PurePosixPath, "PurePosixPath": PurePosixPath, "Path": PurePosixPath}
    paths |= {"WindowsPath": PureWindowsPath, "PureWindowsPath": PureWindowsPath}
    allowed: list[Any] = [(argparse.Namespace, "argparse.Namespace")]  # attributes, and no code of a class
    allowed += [(kind, f"{module}.{name}") for name, kind in paths.items() for module in ("pathlib", "pathlib._local")]
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):  # before numpy 2, and since
        allowed += [(_number, f"{module}.scalar"), (_NumpyArray, f"{module}._reconstruct")]
    allowed += [(_NumpyType, "numpy.dtype"), (_NumpyArray, "numpy.ndarray")]
    lightning = ("pytorch_lightning.utilities.parsing", "lightning.fabric.utilities.data")
    allowed += [(dict, f"{module}.AttributeDict") for module in (*lightning, "lightning_fabric.utilities.data")]
    return allowed


def load_torch(path: Path, notes: list[str], used: Collection[str] = ()) -> tuple[dict[Any, Any], dict[str, Any]]:
    """The weights in a file of torch.save, perhaps of a training script, and that script's arguments.

    Args:
        path: the file.
        notes: for the user; one on what lies beside the weights is added.
        used: what of that is, and does not enter the note.

    Returns:
        The table of the weights, whose values are not looked at, and the arguments by name (none: empty).

    Raises:
        UserError: it is cut or damaged, holds no table, or something that only running code could load.
        OSError: it cannot be read.
    """
    try:
        with numbered_errors(path), torch.serialization.safe_globals(_allowed()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on what a damaged file seems to be
            members = _members(path)
            if any(name.endswith("/constants.pkl") for name in members):
                raise UserError(
                    f"{path} is a TorchScript program, which sdfast does not run: save the state_dict() of the model"
                    " itself with torch.save."
                )
            # mapped, so that what is not used, as an optimiser's state, is not read
            value = torch.load(path, map_location="cpu", weights_only=True, mmap=bool(members))
    except pickle.UnpicklingError as error:
        if (found := re.search(r"GLOBAL (\S+) was not an allowed global", str(error))) is not None:
            raise UserError(
                f"{path} holds more than tensors ({found[1]}), and loading that may run code, which sdfast does not: if"
                " you trust it, load it with torch.load(..., weights_only=False) and save its table of tensors alone."
            ) from error
        raise UserError(
            f"{path} is damaged or holds more than tensors, which sdfast does not load: convert it to safetensors."
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(f"{path} is cut or damaged: download or copy it again.") from error
    return _weights_in(value, path, notes, used)


def _members(path: Path) -> list[str]:
    """Names in the archive that a file of torch.save is since torch 1.6; none in an older one."""
    if not zipfile.is_zipfile(path):
        return []
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except zipfile.BadZipFile:
        return []


def _weights_in(
    value: Any, path: Path, notes: list[str], used: Collection[str]
) -> tuple[dict[Any, Any], dict[str, Any]]:
    arguments: dict[str, Any] = {}
    for _ in _WRAPPERS:  # one may hold another
        key = next((key for key in _WRAPPERS if isinstance(value, dict) and isinstance(value.get(key), dict)), None)
        if key is None:
            break
        if beside := sorted(str(name) for name in value if name != key and name not in used):
            shown = f"{', '.join(beside[:4])}{' and more' if len(beside) > 4 else ''}"
            notes.append(f"not used: {shown} of {path.name}.")
        for name in ARGUMENTS:
            found = value.get(name)
            found = vars(found) if isinstance(found, argparse.Namespace) else found
            arguments |= found if isinstance(found, Mapping) else {}
        value = value[key]
    if not isinstance(value, dict):
        raise UserError(f"{path} does not hold a table of tensors: convert it to safetensors.")
    return value, {str(name): each for name, each in arguments.items()}
