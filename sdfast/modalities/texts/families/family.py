"""What a family of text models says of itself: its fields of `config.json`, its names, its language-model head."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from sdfast.modalities.texts.model import TextShape
from sdfast.modalities.texts.prenorm import PreNorm
from sdfast.models.blocks import Style
from sdfast.models.folder import COUNT, EPSILON, GELU_ONLY, SHARE, Family, Field, Kind, Settings
from sdfast.models.layout import Names, blocks

SHAPE = (
    Field("vocab_size", "vocabulary"),
    Field("max_position_embeddings", "positions", COUNT, 512),
    Field("type_vocab_size", "types", COUNT, 2),
    Field("layer_norm_eps", "norm_eps", EPSILON, 1e-12),
)
DROPOUTS = (
    Field("hidden_dropout_prob", "hidden", SHARE, 0.1),
    Field("attention_probs_dropout_prob", "attention", SHARE, 0.1),
    Field(
        "classifier_dropout",
        "classifier",
        Kind(
            SHARE.words,
            lambda value: value is None or SHARE.holds(value),
            lambda value: None if value is None else float(value),
        ),
    ),
)
ENCODER: Names = {
    "encoder.word_embeddings": ["embeddings.word_embeddings"],
    "encoder.position_embeddings": ["embeddings.position_embeddings"],
    "encoder.type_embeddings": ["embeddings.token_type_embeddings"],
    "encoder.norm": ["embeddings.LayerNorm"],
    **blocks(
        "encoder.blocks",
        ["encoder.layer"],
        {
            "attn.qkv": ["attention.self.(query|key|value)"],
            "attn.proj": ["attention.output.dense"],
            "norm1": ["attention.output.LayerNorm"],
            "fc1": ["intermediate.dense"],
            "fc2": ["output.dense"],
            "norm2": ["output.LayerNorm"],
        },
    ),
}
LEAVES = {"weight": "weight", "bias": "bias", "gamma": "weight", "beta": "bias"}  # the last two: BERT's first release
REFUSED: Mapping[str, tuple[Any, str]] = {
    **GELU_ONLY,
    "position_embedding_type": ("absolute", "asks for {value} positions: sdfast has absolute ones only"),
    "is_decoder": (False, "describes a decoder, which sees no later words: give an encoder"),
}
TIED: Mapping[str, tuple[Any, str]] = {
    "tie_word_embeddings": (
        True,
        "not followed: tie_word_embeddings={value} of config.json; the head shares the embeddings' matrix.",
    )
}


def wanted(plain: str) -> str:
    """The end of a sentence on a tensor that such a model does not have."""
    return f"a plain {plain} (no adapters, other heads or other blocks)"


ReadPreNorm = Callable[[Settings, int], tuple[Style, PreNorm]]
SayPreNorm = Callable[[TextShape], Mapping[str, Any]]


@dataclass(frozen=True)
class TextFamily(Family):
    """One `model_type` of transformers.

    Attributes:
        shape: fields of `TextShape` in `config.json` beside `kind`, `pad_id` and `encoder` (see `stack`).
        fixed: those of `TextShape` that it does not have.
        dropouts: fields of `Dropouts` there.
        said: what is written there as well, for the model is always that.
        remarked: as `refused`, but the sentence is a note, and the model is taken.
        words: the tensor of the words' embeddings, without the prefix.
        decoder: the language-model head's last layer, whose matrix is that of the words' embeddings.
        pre_norm: of a pre-norm model: from its settings and the number of its blocks, their style and what is around
            them; and what `config.json` says of a shape.
    """

    shape: tuple[Field, ...] = SHAPE
    fixed: Mapping[str, Any] = field(default_factory=dict)
    dropouts: tuple[Field, ...] = DROPOUTS
    said: Mapping[str, Any] = field(default_factory=lambda: {"hidden_act": "gelu"})
    remarked: Mapping[str, tuple[Any, str]] = field(default_factory=lambda: TIED)
    words: str = "embeddings.word_embeddings.weight"
    decoder: str = ""
    pre_norm: tuple[ReadPreNorm, SayPreNorm] | None = None
