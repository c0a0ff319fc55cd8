"""What all models have in common as they are loaded and saved: what is given of one, and the folder that is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic

from torch import Tensor, nn

from sdfast.durable import write_bytes, write_json
from sdfast.errors import UserError
from sdfast.models.initialise import fresh_state
from sdfast.models.weights import SAFETENSORS_FILE, Module, filled, sizes_of, weights_digest, write_weights


@dataclass(kw_only=True)
class Pretrained(Generic[Module]):
    """A pre-trained model ready to train: float32, on the CPU.

    Attributes:
        module: the model; its `shape` has its sizes.
        name: what the user called it.
        digest: `weights_digest(module)`: the content, whatever it is called and wherever it lies.
        notes: sentences for the user: what was not used, adapted, replaced or newly made.
    """

    module: Module
    name: str
    notes: list[str] = field(default_factory=list)
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        self.digest = weights_digest(self.module)

    @property
    def shape(self) -> Any:
        """The sizes of the module."""
        return self.module.shape


def write_folder(
    directory: Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    files: Mapping[str, bytes | Mapping[str, Any]],
) -> None:
    """Write a model as transformers does; the same content gives the same bytes.

    Args:
        directory: made where it is not.
        config: of `config.json`, which comes last and names the dtype of the weights as well.
        tensors: by the names of the family, kept bit for bit.
        files: what lies beside them, bytes or JSON.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    dtype = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    write_weights(directory / SAFETENSORS_FILE, tensors)
    for name, content in files.items():
        if isinstance(content, bytes):
            write_bytes(directory / name, content)
        else:
            write_json(directory / name, content)
    write_json(directory / "config.json", {**config, "torch_dtype": dtype})


def classifier_on(kind: type[Module], start: nn.Module, seed: int, *arguments: Any) -> Module:
    """A classifier with the encoder of `start` (copied) and new layers behind it, on its device and in its dtype.

    Args:
        kind: the classifier's class.
        start: what has the encoder; left as it is.
        seed: decides the new layers: matrices normal(0, 0.02), biases zero.
        arguments: of `kind`.
    """
    state = {name: tensor.clone() for name, tensor in start.state_dict().items() if name.startswith("encoder.")}
    like = state["encoder.norm.bias"]
    head = {name: size for name, size in sizes_of(kind, *arguments).items() if name not in state}
    state |= {name: tensor.to(like) for name, tensor in fresh_state(head, seed).items()}
    return filled(kind, state, *arguments)


def config_of_classes(class_names: Sequence[str], outputs: int) -> dict[str, Any]:
    """What `config.json` says of a classifier's outputs.

    Raises:
        UserError: the class names are not distinct or not as many as the outputs.
    """
    names = [str(name) for name in class_names]
    if len(names) != outputs or len(set(names)) != len(names):
        raise UserError(f"a classifier with {outputs} outputs needs as many distinct class names, not {names}.")
    return {
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
        "problem_type": "single_label_classification",
    }


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
