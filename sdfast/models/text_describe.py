"""From the `config.json` of a BERT or RoBERTa to its sizes and dropouts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from sdfast.errors import UserError
from sdfast.models.describe import block_parameters, norm_epsilon, whole_number
from sdfast.models.text import Dropouts, TextShape
from sdfast.models.vit import TransformerShape

# Defaults of BertConfig and RobertaConfig, for configurations that leave them out.
_DEFAULTS: dict[str, dict[str, int]] = {
    "bert": {"vocab_size": 30522, "pad_token_id": 0},
    "roberta": {"vocab_size": 50265, "pad_token_id": 1},
}


def describe_text(config: Mapping[str, Any], folder: Path) -> tuple[TextShape, Dropouts]:
    """Sizes and dropouts of the checkpoint in `folder`.

    Raises:
        UserError: the architecture is none that sdfast takes, or a field is missing or makes no sense.
    """
    path = folder / "config.json"
    kind = _kind(config, path)
    if config.get("hidden_act", "gelu") != "gelu":
        raise UserError(f"{path} asks for the activation {config['hidden_act']}: sdfast has gelu only.")
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise UserError(
            f"{path} asks for {config['position_embedding_type']} positions: sdfast has absolute ones only."
        )
    if config.get("is_decoder"):
        raise UserError(f"{path} describes a decoder, which sees no later words: give an encoder.")
    encoder = TransformerShape(
        width=whole_number(config, "hidden_size", path, 768),
        depth=whole_number(config, "num_hidden_layers", path, 12),
        heads=whole_number(config, "num_attention_heads", path, 12),
        mlp_width=whole_number(config, "intermediate_size", path, 3072),
    )
    vocabulary = whole_number(config, "vocab_size", path, _DEFAULTS[kind]["vocab_size"])
    shape = TextShape(
        kind=kind,
        vocabulary=vocabulary,
        positions=whole_number(config, "max_position_embeddings", path, 512),
        types=whole_number(config, "type_vocab_size", path, 2),
        pad_id=_pad_id(config, vocabulary, path),
        encoder=encoder,
        norm_eps=norm_epsilon(config.get("layer_norm_eps", 1e-12), path),
    )
    if encoder.width % encoder.heads:
        raise UserError(f"{path} is inconsistent: the {encoder.heads} heads do not divide its width {encoder.width}.")
    if shape.longest < 1:
        raise UserError(f"{path} is inconsistent: {shape.positions} positions leave none for a token.")
    return shape, _dropouts(config, path)


def text_parameters(shape: TextShape) -> int:
    """Numbers of an encoder with embeddings, and of a head's own layer."""
    width = shape.encoder.width
    rows = shape.vocabulary + shape.positions + shape.types + 2
    return width * (rows + width + 3) + shape.encoder.depth * block_parameters(shape.encoder)


def _kind(config: Mapping[str, Any], path: Path) -> Literal["bert", "roberta"]:
    kind = config.get("model_type")
    if kind == "bert" or kind == "roberta":
        return kind
    raise UserError(f"{path} describes a {kind} model: of text models sdfast takes bert and roberta.")


def _pad_id(config: Mapping[str, Any], vocabulary: int, path: Path) -> int | None:
    value = config.get("pad_token_id", _DEFAULTS[config["model_type"]]["pad_token_id"])
    if value is not None and (type(value) is not int or not 0 <= value < vocabulary):
        raise UserError(f"pad_token_id in {path} must be one of the {vocabulary} words or null, not {value!r}.")
    return value


def _dropouts(config: Mapping[str, Any], path: Path) -> Dropouts:
    def probability(key: str, default: float | None) -> float | None:
        value = config.get(key, default)
        if value is None and default is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
            raise UserError(f"{key} in {path} must be from 0 to 1, not {value!r}.")
        return float(value)

    hidden, attention = probability("hidden_dropout_prob", 0.1), probability("attention_probs_dropout_prob", 0.1)
    assert hidden is not None and attention is not None  # they have defaults
    return Dropouts(hidden, attention, probability("classifier_dropout", None))
