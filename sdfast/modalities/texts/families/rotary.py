"""Settings that the families with rotary positions have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sdfast.errors import UserError
from sdfast.models.blocks import Activation
from sdfast.models.folder import Kind, Settings, is_number

_NAMES: Mapping[str, Activation] = {
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "silu": "silu",
    "swish": "silu",
}
_THEIRS = {ours: theirs for theirs, ours in reversed([*_NAMES.items()])}
ACTIVATION = Kind(
    f"one of {', '.join(_NAMES)}",
    lambda value: isinstance(value, str) and value in _NAMES,
    _NAMES.__getitem__,
    lambda value: _THEIRS[value],
)
_BASE = Kind("a number above 1", lambda value: is_number(value) and value > 1, float)


def pooling(*taken: str) -> Kind:
    """What `classifier_pooling` may say."""
    return Kind(f"one of {', '.join(taken)}", lambda value: value in taken)


def base_of(settings: Settings, layer: str | None, older: str, default: float, otherwise: float | None = None) -> float:
    """The base of the rotary positions.

    Args:
        settings: of the model.
        layer: the kind of layers whose base it is, where they have several.
        older: the key of transformers 4.
        default: where nothing says it.
        otherwise: where that key is null.

    Raises:
        UserError: positions that are scaled.
    """
    table = settings.table("rope_parameters")
    table = table if layer is None else table.table(layer)
    for scaled in (table, settings.table("rope_scaling")):
        kind = scaled.values.get("rope_type", scaled.values.get("type", "default"))
        if kind != "default" or scaled.values.get("partial_rotary_factor", 1.0) != 1.0:
            raise UserError(
                f"{settings.path} asks for rotary positions of the type {kind}: sdfast has plain ones only."
            )
    if "rope_theta" in table.values:
        return _number(table, "rope_theta", default)
    if otherwise is not None and older in settings.values and settings.values[older] is None:
        return otherwise
    return _number(settings, older, default)


def _number(settings: Settings, key: str, default: float) -> float:
    value: Any = settings.get(key, _BASE, default)
    return float(value)
