"""A family of models as a description: names of tensors, fields of `config.json` with their checks, what is refused.

The families are tables: `sdfast.models.image_families` and `sdfast.models.text_families`. A further one is a row there,
and the options of its block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from sdfast.errors import UserError
from sdfast.models.blocks import TransformerShape
from sdfast.models.layout import Naming
from sdfast.models.weights import Weights

TEXTS_TAKEN = "of text models sdfast takes bert and roberta"
_SPARE = 1 << 24  # parameters


def _same(value: Any) -> Any:
    return value


class Kind(NamedTuple):
    """What a field may hold.

    Attributes:
        words: the end of "must be ...".
        holds: whether a value is one.
        ours: what it is here.
        theirs: the inverse.
    """

    words: str
    holds: Callable[[Any], bool]
    ours: Callable[[Any], Any] = _same
    theirs: Callable[[Any], Any] = _same


def is_number(value: Any) -> bool:
    """A whole or floating-point number, and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _pair(value: Any) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value, value)


COUNT = Kind("a positive whole number", lambda value: type(value) is int and value > 0)
SWITCH = Kind("true or false", lambda value: isinstance(value, bool))
SHARE = Kind("from 0 to 1", lambda value: is_number(value) and 0 <= value < 1, float)
EPSILON = Kind("a small positive number", lambda value: is_number(value) and 0 < value < 1, float)
SIDES = Kind(
    "one or two positive whole numbers",
    lambda value: len(pair := _pair(value)) == 2 and all(type(side) is int and side > 0 for side in pair),
    _pair,
    lambda pair: pair[0] if pair[0] == pair[1] else list(pair),
)


class Field(NamedTuple):
    """A field of a configuration.

    Attributes:
        key: in `config.json`.
        place: the attribute that it becomes.
        kind: what it may hold.
        default: of transformers' configuration class, where the file leaves it out.
    """

    key: str
    place: str
    kind: Kind = COUNT
    default: Any = None


STACK = (
    Field("hidden_size", "width", COUNT, 768),
    Field("num_hidden_layers", "depth", COUNT, 12),
    Field("num_attention_heads", "heads", COUNT, 12),
    Field("intermediate_size", "mlp_width", COUNT, 3072),
)


@dataclass(frozen=True)
class Family:
    """One `model_type` of transformers.

    Attributes:
        name: with which the names of transformers' classes begin.
        naming: of its tensors.
        stack: fields of the encoder's sizes.
        defaults: of its configuration class, where they are not those of the fields.
        refused: by key the value at which the model is one that sdfast has (`None` or `False` for none), and the end of
            a sentence on another, which may name `{value}`.
        head: with which the names of a language-model head's tensors begin.
    """

    name: str
    naming: Naming
    stack: tuple[Field, ...] = STACK
    defaults: Mapping[str, Any] = field(default_factory=dict)
    refused: Mapping[str, tuple[Any, str]] = field(default_factory=dict)
    head: str = ""


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

    def family(self, families: Mapping[str, Family], taken: str, reasons: Mapping[str, str] | None = None) -> Family:
        """Whose configuration this is.

        Args:
            families: by `model_type`.
            taken: the end of a sentence on any other.
            reasons: the ends for some.

        Raises:
            UserError: it is none of `families`, or a variant that sdfast does not have.
        """
        kind = self.values.get("model_type")
        if not isinstance(kind, str) or kind not in families:
            raise UserError(f"{self.path} describes a {kind} model: {(reasons or {}).get(str(kind), taken)}.")
        self.refuse(families[kind].refused)
        return families[kind]

    def refuse(self, refused: Mapping[str, tuple[Any, str]]) -> None:
        """Raise a UserError on a setting of a model that sdfast does not have: see `Family.refused`."""
        for key, (had, sentence) in refused.items():
            value = self.values.get(key, had)
            if value != had and (value or had):
                raise UserError(f"{self.path} {sentence.format(value=value)}.")

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
