"""Tensors of a checkpoint in and out: safetensors or `pytorch_model.bin` (also sharded), one file; their digest."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from sdfast.durable import numbered_errors
from sdfast.errors import UserError, said
from sdfast.models.torch_files import ARGUMENTS, load_torch
from sdfast.regular import is_there, open_regular, read_regular

SAFETENSORS_FILE = "model.safetensors"
_TORCH_FILE = "pytorch_model.bin"
_CANDIDATES = (SAFETENSORS_FILE, f"{SAFETENSORS_FILE}.index.json", _TORCH_FILE, f"{_TORCH_FILE}.index.json")
_WRAPPED = {"module.": "DataParallel", "_orig_mod.": "torch.compile"}  # what puts itself before every name
_LONGEST_JSON, _DEEPEST_JSON = 1 << 26, 64

Module = TypeVar("Module", bound=nn.Module)


@dataclass
class Weights:
    """The tensors of a checkpoint under the names of their source.

    `tensors` are as stored (any floating dtype, perhaps mapped from the file: copy before keeping them); `files` says
    which file each came from, for messages; `notes` are sentences for the user on what was read otherwise than stored;
    `arguments` are those of the training script that saved a single file.
    """

    tensors: dict[str, Tensor]
    files: dict[str, Path]
    folder: Path
    notes: tuple[str, ...] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """How many numbers they hold."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors.values())

    @property
    def described_by(self) -> str:
        """What says which tensors there are and of what sizes, for messages."""
        return "config.json" if self.folder.is_dir() else "the rest of the file"

    def file_of(self, name: str) -> Path:
        """Where `name` is, or where it should be."""
        return self.files.get(name, next(iter(self.files.values()), self.folder))

    def missing(self, name: str) -> UserError:
        """One sentence on a tensor that is not there."""
        return UserError(f"{self.file_of(name)} has no tensor '{name}'.")


def read_config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """A JSON object from a checkpoint folder.

    Raises:
        UserError: the file is absent, cannot be read, or is not a JSON object that can be written again (one that is
            nested deeper than any model's, or holds NaN).
    """
    path, again = folder / name, "download or copy the model again"
    try:
        value = json.loads(read_regular(path, _LONGEST_JSON), parse_constant=_no_number)
        deep = not _shallow(value, _DEEPEST_JSON)
    except OSError as error:
        if is_there(path) or not isinstance(error, FileNotFoundError):
            raise unreadable(path, error) from error
        there = _saved(folder)
        instead = f" ({some(there)} lie there: give a file itself, or put the model's config.json beside it)" * bool(
            there
        )
        raise UserError(f"{folder} has no {name}, so it is not a model folder{instead}.") from error
    except ValueError as error:
        raise UserError(f"{path} is not readable JSON: {again}.") from error
    except RecursionError:
        deep = True
    if deep:
        raise UserError(f"{path} is nested too deeply: {again}.")
    if not isinstance(value, dict):
        raise UserError(f"{path} does not hold a JSON object: {again}.")
    return value


def some(names: Sequence[str]) -> str:
    """The first four of many names."""
    return f"{', '.join(names[:4])}{' and more' if len(names) > 4 else ''}"


def unreadable(path: Path, error: OSError) -> UserError:
    """One sentence on a file of a model that cannot be opened."""
    reason = said(error)
    fix = "; allow yourself to read it" if isinstance(error, PermissionError) else ""
    return UserError(f"{path} cannot be read: {reason}{fix}.")


def read_weights(place: Path) -> Weights:
    """All tensors of a checkpoint.

    Args:
        place: its folder, or one file of weights.

    Raises:
        UserError: no weights, a missing shard, or a file that cannot be read, is cut, damaged or holds something else
            than tensors.
    """
    alone = not place.is_dir()
    chosen = place if alone else next((place / name for name in _CANDIDATES if is_there(place / name)), None)
    if chosen is None:
        expected = f"expected {SAFETENSORS_FILE} or {_TORCH_FILE}"
        found = _saved(place)
        instead = f" ({found[0]} is there: name it {_TORCH_FILE})" if found else ""
        raise UserError(f"{place} has no weights: {expected}{instead}.")
    paths = [chosen] if alone or chosen.suffix != ".json" else _shards(chosen)
    read = Weights({}, {}, place)
    notes: list[str] = []
    for path in paths:
        table, arguments = _table_of(path, notes, ARGUMENTS if alone else ())
        for name, tensor in table.items():
            read.tensors[name] = tensor
            read.files[name] = path
        read.arguments = arguments if alone else {}
    if not read.tensors:
        raise UserError(f"{chosen} holds no tensors.")
    return _unwrapped(replace(read, notes=(*notes, *_of_another_precision(read.tensors))))


def sizes_of(kind: Callable[..., nn.Module], *arguments: Any) -> dict[str, torch.Size]:
    """Names and sizes of the tensors that a module made with these arguments has; none is allocated."""
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in kind(*arguments).state_dict().items()}


def filled(kind: Callable[..., Module], state: Mapping[str, Tensor], *arguments: Any) -> Module:
    """A module made of these very tensors: nothing is initialised, nothing copied."""
    with torch.device("meta"):
        module = kind(*arguments)
    module.load_state_dict(state, assign=True)
    return module


def later(default: Any) -> Any:
    """A field of a shape that came after models had digests: it enters them only where it is not the default."""
    return field(default=default, metadata={"later": True})


def described(shape: Any) -> dict[str, Any]:
    """The fields of a shape, which is a dataclass, for JSON; those that are `later` only where they are not usual."""
    values = {each: getattr(shape, each.name) for each in fields(shape)}
    return {
        each.name: described(value) if is_dataclass(value) else list(value) if isinstance(value, tuple) else value
        for each, value in values.items()
        if not (each.metadata.get("later") and value == each.default)
    }


def weights_digest(module_or_state: nn.Module | Mapping[str, Tensor]) -> str:
    """SHA-256 of the content of a model: names, dtypes, shapes and bytes of all tensors in name order.

    For a module with a `shape` (`ViTShape`, `TextShape`) its fields come first, as the number of heads and the
    LayerNorm epsilon change the function but no tensor. Paths, times and devices do not enter.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    if isinstance(module_or_state, nn.Module):
        shape = getattr(module_or_state, "shape", None)
        if shape is not None:
            digest.update(json.dumps(described(shape), sort_keys=True).encode())
        state: Mapping[str, Tensor] = module_or_state.state_dict()
    else:
        state = module_or_state
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _shards(index: Path) -> list[Path]:
    weight_map = read_config(index.parent, index.name).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise UserError(f"{index} has no weight_map: download or copy the model again.")
    names = sorted(set(weight_map.values()))
    if outside := next((name for name in names if Path(name).is_absolute() or ".." in Path(name).parts), None):
        raise UserError(f"{index} names {outside}, which is not in its folder: download or copy the model again.")
    paths = [index.parent / name for name in names]
    for path in paths:
        if not is_there(path):
            raise UserError(f"{path} is missing although {index.name} names it: download or copy the model again.")
    return paths


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _shallow(value: Any, deepest: int) -> bool:
    if not isinstance(value, dict | list):
        return True
    inside = value.values() if isinstance(value, dict) else value
    return deepest > 0 and all(_shallow(each, deepest - 1) for each in inside)


def _saved(folder: Path) -> list[str]:
    """Files of weights under other names than those that are looked for."""
    try:
        return sorted(path.name for path in folder.iterdir() if path.suffix in (".pth", ".pt", ".ckpt"))
    except OSError:
        return []


def _unwrapped(weights: Weights) -> Weights:
    """The weights under the names that a model had before it was wrapped for training or compiled."""
    taken = []
    while prefix := next((p for p in _WRAPPED if all(name.startswith(p) for name in weights.tensors)), None):
        taken.append(f"{prefix} ({_WRAPPED[prefix]})")
        tensors = {name.removeprefix(prefix): tensor for name, tensor in weights.tensors.items()}
        files = {name.removeprefix(prefix): path for name, path in weights.files.items()}
        weights = replace(weights, tensors=tensors, files=files)
    if not taken:
        return weights
    note = f"the names of the checkpoint's tensors begin with {' and '.join(taken)}, which was taken off."
    return replace(weights, notes=(*weights.notes, note))


def _of_another_precision(tensors: Mapping[str, Tensor]) -> list[str]:
    kinds = {str(t.dtype).removeprefix("torch.") for t in tensors.values() if t.is_floating_point()} - {"float32"}
    if not kinds:
        return []
    how = "rounded" if "float64" in kinds else "widened, which loses nothing,"
    return [f"the weights are stored in {' and '.join(sorted(kinds))}: they were {how} to float32 for training."]


def _table_of(path: Path, notes: list[str], used: Sequence[str]) -> tuple[dict[str, Tensor], Mapping[str, Any]]:
    arguments: Mapping[str, Any] = {}
    try:
        with open_regular(path) as file:
            begins = file.read(9)  # of safetensors: the length of a JSON object, and its brace
        if path.suffix == ".safetensors" or begins[8:] == b"{":
            loaded: dict[Any, Any] = _load_safetensors(path)
        else:
            loaded, arguments = load_torch(path, notes, used)
    except OSError as error:
        raise unreadable(path, error) from error
    for name, tensor in loaded.items():
        if not isinstance(tensor, Tensor):
            raise UserError(f"{path} holds '{name}', which is not a tensor: give a checkpoint of weights only.")
    return {str(name): tensor for name, tensor in loaded.items()}, arguments


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        with numbered_errors(path):
            return load_file(path)
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{path} is cut or damaged ({error}): download or copy it again.") from error
