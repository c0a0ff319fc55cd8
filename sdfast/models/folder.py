"""A model's folder: what a family of models has in its `config.json` and calls its tensors; how a folder is written.

A family is a description (`Family`); they stand in tables, `sdfast.modalities.images.families` and
`sdfast.modalities.texts.families`. A further one is a row there, and the options of its block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from torch import Tensor, nn

from sdfast.durable import load_json, save_tensors, write_bytes, write_json
from sdfast.errors import UserError
from sdfast.models.blocks import TransformerShape
from sdfast.models.initialise import fresh_state
from sdfast.models.kinds import refusal
from sdfast.models.layout import Naming, read_state
from sdfast.models.weights import SAFETENSORS_FILE, Module, Weights, filled, sizes_of

THRESHOLD = "sdfast_threshold"  # in config.json: the probability from which on a class applies
ONE_CLASS = "single_label_classification"  # as `problem_type`
_SPARE = 1 << 24  # parameters


class Kind(NamedTuple):
    """What a field of a configuration may hold."""

    words: str  # the end of "must be ..."
    holds: Callable[[Any], bool]
    ours: Callable[[Any], Any] = lambda value: value  # what a value is here
    theirs: Callable[[Any], Any] = lambda value: value  # and in the file


def is_number(value: Any) -> bool:
    """A whole or floating-point number, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _pair(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value, value)


COUNT = Kind("a positive whole number", lambda value: type(value) is int and value > 0)
SWITCH = Kind("true or false", lambda value: isinstance(value, bool))
SHARE = Kind("from 0 to 1", lambda value: is_number(value) and 0 <= value < 1, float)
POSITIVE = Kind("a positive number", lambda value: is_number(value) and 0 < value < float("inf"), float)
EPSILON = Kind("a small positive number", lambda value: is_number(value) and 0 < value < 1, float)
SIDES = Kind(
    "one or two positive whole numbers",
    lambda value: len(pair := _pair(value)) == 2 and all(type(side) is int and side > 0 for side in pair),
    _pair,
    lambda pair: pair[0] if pair[0] == pair[1] else list(pair),
)


class Field(NamedTuple):
    """A field of a configuration, and the attribute that it becomes here."""

    key: str
    place: str
    kind: Kind = COUNT
    default: Any = None  # of transformers' configuration class, where the file leaves it out


STACK = (
    Field("hidden_size", "width", COUNT, 768),
    Field("num_hidden_layers", "depth", COUNT, 12),
    Field("num_attention_heads", "heads", COUNT, 12),
    Field("intermediate_size", "mlp_width", COUNT, 3072),
)


@dataclass(frozen=True)
class Family:
    """One `model_type` of transformers.

    `refused` has by key the value at which the model is one that sdfast has (`False` for none), and the end of a
    sentence on any other, `{value}`.
    """

    name: str  # with which the names of transformers' classes begin
    naming: Naming
    refused: Mapping[str, tuple[Any, str]]
    stack: tuple[Field, ...] = STACK  # the encoder's sizes
    defaults: Mapping[str, Any] = field(default_factory=dict)  # where they are not those of the fields
    head: str = ""  # with which the names of a language-model head's tensors begin
    processor_decides: bool = False  # the size of images, where positions are published for another


AnyFamily = TypeVar("AnyFamily", bound=Family)
GELU_ONLY = {"hidden_act": ("gelu", "asks for the activation {value}: sdfast has gelu only")}


@dataclass(frozen=True)
class Settings:
    """A `config.json`, or a table in it: its `values`, and the `path` that messages name."""

    values: Mapping[str, Any]
    path: Path

    def get(self, key: str, kind: Kind = COUNT, default: Any = None) -> Any:
        """The value of a field; a UserError if it is none of its kind."""
        value = self.values.get(key, default)
        if not kind.holds(value):
            raise UserError(f"{key} in {self.path} must be {kind.words}, not {value!r}.")
        return kind.ours(value)

    def read(self, fields: Sequence[Field]) -> dict[str, Any]:
        """Values by place; a UserError names the first that is none."""
        return {field.place: self.get(field.key, field.kind, field.default) for field in fields}

    def table(self, key: str) -> Settings:
        """A table in this one, empty where there is none; a UserError if it is something else."""
        value = self.values.get(key) or {}
        if not isinstance(value, Mapping):
            raise UserError(f"{key} in {self.path} must be a table.")
        return Settings(value, self.path)

    def family(self, families: Mapping[str, AnyFamily], of: Literal["images", "texts"]) -> AnyFamily:
        """Whose configuration this is.

        Args:
            families: by `model_type`.
            of: what their models are of.

        Raises:
            UserError: it is none of `families`, or a variant that sdfast does not have.
        """
        kind = self.values.get("model_type")
        if not isinstance(kind, str) or kind not in families:
            raise refusal(self.path, self.values, {of: families})
        self.refuse(families[kind].refused)
        return families[kind]

    def refuse(self, refused: Mapping[str, tuple[Any, str]]) -> None:
        """Raise a UserError on a setting of a model that sdfast does not have: see `Family.refused`."""
        for sentence in self.differing(refused):
            raise UserError(f"{self.path} {sentence}.")

    def differing(self, usual: Mapping[str, tuple[Any, str]]) -> list[str]:
        """The sentences on settings that differ from the usual value, as `Family.refused` has them."""
        found = ((sentence, had, self.values.get(key, had)) for key, (had, sentence) in usual.items())
        return [sentence.format(value=value) for sentence, had, value in found if value != had and (value or had)]

    def unheeded(self, usual: Mapping[str, Any]) -> list[str]:
        """A sentence on settings that have no place here, where one differs from the usual value."""
        found = [
            f"{key}={self.values[key]}" for key, value in usual.items() if self.values.get(key) not in (None, value)
        ]
        if not found:
            return []
        return [
            f"not followed: {', '.join(found)} of config.json; dropout acts in finetune, as finetune.dropout says, and"
            " new weights have a deviation of 0.02."
        ]

    def check_heads(self, stack: TransformerShape, whose: str = "") -> None:
        """Raise a UserError unless the heads divide the width; `whose` stack it is goes into the sentence."""
        if stack.width % stack.heads:
            raise UserError(
                f"{self.path} is inconsistent: the {whose}{stack.heads} heads do not divide its width {stack.width}."
            )

    def check_budget(self, parameters: int, depth: int, weights: Weights) -> None:
        """Compare the sizes with the weights before anything of these sizes is allocated.

        Small differences are left to the comparison of each tensor, which names it.

        Args:
            parameters: how many the model has whose sizes the configuration gives.
            depth: and how many blocks.
            weights: of the checkpoint.

        Raises:
            UserError: the model is far larger than its weights.
        """
        if depth <= len(weights.tensors) and parameters <= 2 * weights.size + _SPARE:
            return
        raise UserError(
            f"{self.path} describes a model of {depth:,} blocks and {parameters:,} parameters, but"
            f" {weights.file_of('')} holds {weights.size:,}: one of the sizes there is wrong, or the two are not of the"
            " same model."
        )


def config_of(sizes: Any, *fields: Field) -> dict[str, Any]:
    """The inverse of `Settings.read`: what `config.json` has of an object with the places as attributes."""
    return {field.key: field.kind.theirs(getattr(sizes, field.place)) for field in fields}


@dataclass(frozen=True)
class Source:
    """What a model's folder holds: what it is, and its tensors, raw."""

    config: Settings
    weights: Weights
    family: Family
    shape: Any  # of sizes
    notes: list[str]  # for the user

    def classifier(self, kind: Callable[..., nn.Module], head: str) -> tuple[dict[str, Tensor], list[str]]:
        """Our tensors of a classifier, and the names of its outputs in their order.

        Args:
            kind: the classifier's class.
            head: the name of transformers' class, for messages.

        Raises:
            UserError: the model is none, or its configuration names other outputs.
        """
        naming, tensors, folder = self.family.naming, self.weights.tensors, self.weights.folder
        last = naming.sources("classifier.weight")[0] if "classifier" in naming.names else ""
        if last not in tensors:
            raise UserError(f"{folder} holds no {head}: give the model of a fine-tuned classifier.")
        outputs = [str(number) for number in range(len(tensors[last]))]
        state = read_state(self.weights, naming, sizes_of(kind, self.shape, len(outputs)))
        labels = self.config.values.get("id2label")
        labels = labels if isinstance(labels, dict) else {output: f"LABEL_{output}" for output in outputs}
        if sorted(labels) != sorted(outputs):
            raise UserError(f"id2label in {self.config.path} does not name the {len(outputs)} classes of the weights.")
        return state, [str(labels[output]) for output in outputs]


@dataclass
class Pretrained(Generic[Module]):
    """A pre-trained model ready to train: float32, on the CPU.

    Attributes:
        module: the model.
        shape: its sizes (also `module.shape`).
        name: what the user called it.
        digest: `weights_digest(module)`: the content, whatever it is called and wherever it lies.
        notes: sentences for the user: what was not used, adapted, replaced or newly made.
    """

    module: Module
    shape: Any
    name: str
    digest: str
    notes: list[str]


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
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_tensors(directory / SAFETENSORS_FILE, state, {"format": "pt"})  # as transformers marks its own
    for name, content in files.items():
        if isinstance(content, bytes):
            write_bytes(directory / name, content)
        else:
            write_json(directory / name, content)
    write_json(directory / "config.json", {**config, "torch_dtype": dtype})


def classifier_on(kind: Callable[..., Module], start: nn.Module, seed: int, *arguments: Any) -> Module:
    """A classifier with what it shares with `start` (copied) and new layers for the rest, on its device, in its dtype.

    Args:
        kind: the classifier's class.
        start: what has the encoder, and perhaps a part of the classifier's head; left as it is.
        seed: decides the new layers: matrices normal(0, 0.02), biases zero.
        arguments: of `kind`.
    """
    sizes = sizes_of(kind, *arguments)
    state = {name: tensor.clone() for name, tensor in start.state_dict().items() if name in sizes}
    like = next(iter(state.values()))
    head = {name: size for name, size in sizes.items() if name not in state}
    state |= {name: tensor.to(like) for name, tensor in fresh_state(head, seed).items()}
    return filled(kind, state, *arguments)


def add_threshold(folder: Path, threshold: float) -> None:
    """Say in the `config.json` of a classifier of several classes a row from which probability on one applies."""
    config = load_json(folder / "config.json")
    write_json(folder / "config.json", {**config, THRESHOLD: threshold})


def config_of_classes(class_names: Sequence[str], outputs: int, problem: str = ONE_CLASS) -> dict[str, Any]:
    """What `config.json` says of a classifier's outputs; `problem` is its `problem_type`.

    Raises:
        UserError: the class names are not distinct or not as many as the outputs.
    """
    names = [str(name) for name in class_names]
    if len(names) != outputs or len(set(names)) != len(names):
        raise UserError(f"a classifier with {outputs} outputs needs as many distinct class names, not {names}.")
    return {
        "id2label": {str(number): name for number, name in enumerate(names)},
        "label2id": {name: number for number, name in enumerate(names)},
        "problem_type": problem,
    }
