"""Tensors of a checkpoint folder in and out: safetensors (also sharded) or `pytorch_model.bin`, and their digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from sdfast.durable import save_tensors
from sdfast.errors import UserError

SAFETENSORS_FILE = "model.safetensors"
_TORCH_FILE = "pytorch_model.bin"
_CANDIDATES = (SAFETENSORS_FILE, f"{SAFETENSORS_FILE}.index.json", _TORCH_FILE, f"{_TORCH_FILE}.index.json")

_Module = TypeVar("_Module", bound=nn.Module)


@dataclass
class Weights:
    """The tensors of a checkpoint under the names of their source.

    `tensors` are as stored (any floating dtype, perhaps mapped from the file: copy before keeping them); `files` says
    which file each came from, for messages.
    """

    tensors: dict[str, Tensor]
    files: dict[str, Path]
    folder: Path

    def file_of(self, name: str) -> Path:
        """Where `name` is, or where it should be."""
        return self.files.get(name, next(iter(self.files.values()), self.folder))


def read_config(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """A JSON object from a checkpoint folder.

    Raises:
        UserError: the file is absent or not a JSON object.
    """
    path = folder / name
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{folder} has no {name}, so it is not a model folder.") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not readable JSON: download or copy the model again.") from error
    if not isinstance(value, dict):
        raise UserError(f"{path} does not hold a JSON object: download or copy the model again.")
    return value


def read_weights(folder: Path) -> Weights:
    """All tensors of a checkpoint folder.

    Raises:
        UserError: no weights, a missing shard, or a file that is cut, damaged or holds something else than tensors.
    """
    chosen = next((folder / name for name in _CANDIDATES if (folder / name).is_file()), None)
    if chosen is None:
        raise UserError(f"{folder} has no weights: expected {SAFETENSORS_FILE} or {_TORCH_FILE}.")
    paths = [chosen] if chosen.suffix != ".json" else _shards(chosen)
    tensors: dict[str, Tensor] = {}
    files: dict[str, Path] = {}
    for path in paths:
        for name, tensor in _tensors_of(path):
            tensors[name] = tensor
            files[name] = path
    if not tensors:
        raise UserError(f"{chosen} holds no tensors.")
    return Weights(tensors, files, folder)


def write_weights(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file as transformers does (metadata `format: pt`); the same tensors give the same bytes."""
    save_tensors(path, {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}, {"format": "pt"})


def filled(kind: type[_Module], state: dict[str, Tensor], *arguments: Any) -> _Module:
    """A module made of these very tensors: nothing is initialised, nothing copied."""
    with torch.device("meta"):
        module = kind(*arguments)
    module.load_state_dict(state, assign=True)
    return module


def class_names(config: Mapping[str, Any], classes: int, folder: Path) -> list[str]:
    """The names of a classifier's outputs, in their order.

    Raises:
        UserError: the configuration names others.
    """
    labels = config.get("id2label")
    labels = labels if isinstance(labels, dict) else {str(number): f"LABEL_{number}" for number in range(classes)}
    if sorted(labels) != sorted(str(number) for number in range(classes)):
        raise UserError(f"id2label in {folder / 'config.json'} does not name the {classes} classes of the weights.")
    return [str(labels[str(number)]) for number in range(classes)]


def weights_digest(module_or_state: nn.Module | Mapping[str, Tensor]) -> str:
    """SHA-256 of the content of a model: names, dtypes, shapes and bytes of all tensors in name order.

    For a module with a `shape` (`ViTShape`) its fields come first, as the number of heads and the LayerNorm epsilon
    change the function but no tensor. Paths, times and devices do not enter.

    Returns:
        64 hexadecimal digits.
    """
    digest = hashlib.sha256()
    if isinstance(module_or_state, nn.Module):
        shape = getattr(module_or_state, "shape", None)
        if shape is not None:
            digest.update(json.dumps(asdict(shape), sort_keys=True).encode())
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
    paths = [index.parent / Path(name).name for name in sorted(set(weight_map.values()))]
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path} is missing although {index.name} names it: download or copy the model again.")
    return paths


def _tensors_of(path: Path) -> Iterator[tuple[str, Tensor]]:
    loaded = _load_safetensors(path) if path.suffix == ".safetensors" else _load_torch(path)
    for name, tensor in loaded.items():
        if not isinstance(tensor, Tensor):
            raise UserError(f"{path} holds '{name}', which is not a tensor: give a checkpoint of weights only.")
        yield str(name), tensor


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is cut or damaged ({error}): download or copy it again.") from error


def _load_torch(path: Path) -> dict[str, Any]:
    import pickle

    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path} is damaged or holds more than tensors, which sdfast does not load: convert it to safetensors."
        ) from error
    except (OSError, EOFError, RuntimeError, ValueError, KeyError) as error:
        raise UserError(f"{path} is cut or damaged: download or copy it again.") from error
    for key in ("state_dict", "model"):  # how some repositories wrap their weights
        if isinstance(value, dict) and isinstance(value.get(key), dict):
            value = value[key]
    if not isinstance(value, dict):
        raise UserError(f"{path} does not hold a table of tensors: convert it to safetensors.")
    return value
